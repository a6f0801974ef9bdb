"""What the container images weigh, and what takes the room: python -m benchmarks.images

Builds both. Sizes are those of `docker image inspect`: MB (10^6 bytes) on disk, uncompressed.
"""

import subprocess

BASE = "python:3.13-slim"
TARGETS = ("lambda", "server")
LARGEST = 12
PLACES = "/usr/local/lib/python3*/site-packages/* /usr/local/lib/python3*/__pycache__ /app"


def output(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def megabytes(image: str) -> float:
    return int(output("docker", "image", "inspect", "--format", "{{.Size}}", image)) / 1e6


def base_megabytes() -> float:
    if not output("docker", "images", "--quiet", BASE):
        output("docker", "pull", "--quiet", BASE)
    return megabytes(BASE)


def main() -> None:
    images = {target: f"cloud-native-poc:size-{target}" for target in TARGETS}
    for target, image in images.items():
        output("docker", "buildx", "build", "--quiet", "--load", "--target", target, "--tag", image, ".")
    base = base_megabytes()
    print(f"| image | MB | above `{BASE}` ({base:.0f} MB) |\n|---|---|---|")
    for target, image in images.items():
        print(f"| `{target}` | {megabytes(image):.0f} | {megabytes(image) - base:.0f} |")
    print("\n| in `server` | MB |\n|---|---|")
    listing = output(
        "docker", "run", "--rm", images["server"], "sh", "-c", f"du -sk {PLACES} | sort -rn | head -{LARGEST}"
    )
    for line in listing.splitlines():
        size, path = line.split("\t")
        print(f"| {path.rpartition('site-packages/')[2]} | {int(size) * 1024 / 1e6:.1f} |")
    output("docker", "rmi", *images.values())


if __name__ == "__main__":
    main()
