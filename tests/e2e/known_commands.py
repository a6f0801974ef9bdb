"""Commands that operators know from the runbook this service was asked to satisfy, by what they do with them."""

from typing import NamedTuple


class Known(NamedTuple):
    command: str
    shows: str = ""  # a pattern in what it prints
    in_table: str = ""  # the word that its row begins with, if RUNBOOK.md's table "Commands that you may know" has one
    fails: bool = False


URL = "http://localhost:8000"
INSPECT = "docker inspect cloud-native-poc | jq"
LOGS = "docker logs cloud-native-poc 2>&1 |"
OLD_BACKUP = "backups/app-20251110-1200.db"

# A service is ready before each of these, and whatever is done the items stay
KNOWN: dict[str, list[Known]] = {
    "ask it": [
        Known(f"curl {URL}/health", '"healthy"'),
        Known(f"curl {URL}/ready", '"database":"connected"'),
        Known(f"curl {URL}/docs", "swagger"),
        Known(f"curl {URL}/metrics", "http_requests_total"),
        Known(f"curl {URL}/api/items", '"kept"'),
        Known(f"curl -v {URL}/health", "200 OK"),
        Known(f"curl -v {URL}/ready", "200 OK"),
        Known(f"curl -v {URL}/api/items/999", "404"),
        Known(f"time curl {URL}/api/items", "real"),
        Known(f'curl -w "@curl-format.txt" -o /dev/null -s {URL}/api/items', "time_total"),
        Known(f'curl -f {URL}/health || echo "ALERT: Health check failing"', "^(?!.*ALERT)"),
    ],
    "ask Docker": [
        Known("docker ps | grep cloud-native-poc", "cloud-native-poc"),
        Known("docker ps -a | grep cloud-native-poc", "cloud-native-poc"),
        Known(f"{INSPECT} '.'", '"Id"'),
        Known(f"{INSPECT} '.[0].State'", '"running"'),
        Known(f"{INSPECT} '.[0].State.Health'", '"Status"'),
        Known(f"{INSPECT} '.[0].State.ExitCode'", "0"),
        Known(f"{INSPECT} '.[0].Mounts'", "/app/data"),
        Known(f"{INSPECT} -e '.[0].State.Running' || echo \"ALERT: Container not running\"", "true", "works"),
        Known("docker stats cloud-native-poc --no-stream", "512MiB"),
        Known("docker stats cloud-native-poc", "512MiB"),
        Known("docker events --filter container=cloud-native-poc --since 1h", "container", "never"),
        Known("docker network inspect bridge", "bridge", "shows"),
        Known("docker images cloud-native-poc", "latest"),
        Known("docker volume ls", "scratch"),
        Known("docker volume rm cloud-native-poc_data", "no such volume", "fails", True),
        Known("dmesg | grep -i oom || true"),
        Known("df -h", "Filesystem"),
        Known("df -h data/", "Filesystem"),
        Known("lsof -i :8000", "LISTEN"),
    ],
    "ask the container": [
        Known("docker exec cloud-native-poc ps aux", "python -m handler"),
        Known("docker exec cloud-native-poc ls -la /app", "handler"),
        Known("docker exec cloud-native-poc python --version", "Python 3"),
        Known("docker exec cloud-native-poc pip list", "starlette"),
        Known('docker exec cloud-native-poc sqlite3 /app/data/app.db "SELECT 1;"', "^1$"),
        Known("docker exec -it cloud-native-poc /bin/sh"),
        Known("docker exec cloud-native-poc cat /app/app/main.py", "No such file", "fails", True),
        Known(
            "docker exec cloud-native-poc python -c \"from app.database import get_db; print('DB OK')\"",
            "No module named 'app'",
            "fails",
            True,
        ),
        Known(
            "docker exec cloud-native-poc sqlite3 /app/data/app.db <<'EOF'\n"
            ".timer on\nSELECT * FROM items LIMIT 100;\nEOF",
            r"\A\Z",
            "does",
        ),
    ],
    "ask the database": [
        Known("ls -lh data/app.db", "app.db"),
        Known("ls -lh data/app.db*", "app.db-wal"),
        Known("ls -la data/app.db-*", "app.db-wal"),
        Known("ls -l data/app.db", "app.db"),
        Known('sqlite3 data/app.db "SELECT COUNT(*) FROM items;"', r"^\d+$"),
        Known('sqlite3 data/app.db "PRAGMA integrity_check;"', "^ok$"),
        Known('sqlite3 data/app.db ".schema"', "CREATE TABLE"),
        Known('sqlite3 data/app.db ".schema items"', "CREATE TABLE"),
        Known('sqlite3 data/app.db "PRAGMA locking_mode;"', "normal"),
        Known('sqlite3 data/app.db "PRAGMA locking_mode=NORMAL;"', "normal"),
        Known(
            "sqlite3 data/app.db << 'EOF'\n"
            "PRAGMA integrity_check;\nPRAGMA foreign_key_check;\nPRAGMA quick_check;\nEOF",
            "ok",
        ),
        Known("fuser data/app.db", r"\d"),
    ],
    "tidy up the database": [
        Known('sqlite3 data/app.db "VACUUM;"'),
        Known('sqlite3 data/app.db "ANALYZE;"'),
        Known('sqlite3 data/app.db "VACUUM; ANALYZE;"'),
        Known("sqlite3 data/app.db << 'EOF'\nREINDEX;\nANALYZE;\nEOF"),
        Known("sqlite3 data/app.db << 'EOF'\nVACUUM;\nANALYZE;\nREINDEX;\nEOF"),
        Known("sqlite3 data/app.db << 'EOF'\n.dbinfo\nEOF", "dbinfo", "fails", True),
        Known("sqlite3 data/app.db << 'EOF'\nCREATE INDEX IF NOT EXISTS idx_items_created ON items(created_at);\nEOF"),
    ],
    "read the log": [
        Known("docker logs -f cloud-native-poc", "Uvicorn running"),
        Known("docker logs cloud-native-poc", "Uvicorn running"),
        *(Known(f"docker logs --tail {number} cloud-native-poc", "timestamp") for number in (50, 100, 200)),
        Known("docker logs --since 1h cloud-native-poc", "timestamp"),
        Known(f"{LOGS} tail -100", "timestamp"),
        Known(f"{LOGS} jq -r 'select(.path == \"/api/items\")'", "/api/items"),
        Known(f"{LOGS} jq -r 'select(.status_code >= 500) | .path' | sort | uniq -c", r"\A\Z"),
        Known(
            f"{LOGS} jq -r 'select(.duration_ms != null) | .duration_ms' | "
            'awk \'{sum+=$1; count++} END {print "Avg:", sum/count "ms"}\'',
            "Avg: ",
        ),
        Known(f"{LOGS} jq -r 'select(.level == \"ERROR\")'", r"\A\Z", "works"),
        Known(f"{LOGS} jq 'select(.level == \"ERROR\")' | head -5", r"\A\Z", "works"),
        Known(
            "docker logs cloud-native-poc --since 1h 2>&1 | jq -r 'select(.level == \"ERROR\") | .message' | "
            "sort | uniq -c",
            r"\A\Z",
            "works",
        ),
        Known(
            "docker logs cloud-native-poc --since 5m 2>&1 | jq -r 'select(.level == \"ERROR\")' | wc -l", "^0$", "works"
        ),
        Known("docker logs --since 24h cloud-native-poc 2>&1 | jq 'select(.level == \"ERROR\")'", r"\A\Z", "works"),
        Known(
            '[ $(docker logs cloud-native-poc --since 5m 2>&1 | grep -c "ERROR") -gt 10 ] && '
            'echo "ALERT: High error rate" || true',
            r"\A\Z",
        ),
        Known(f'{LOGS} grep -i "traceback" || true', r"\A\Z"),
        Known("docker logs --tail 100 cloud-native-poc 2>&1 | grep -i error || true"),
    ],
    "keep logs and numbers": [
        Known("docker logs cloud-native-poc > logs/app-$(date +%Y%m%d).log"),
        Known(f"{LOGS} jq '.' > logs/app-$(date +%Y%m%d).json"),
        Known("docker logs cloud-native-poc > logs/app-weekly-$(date +%Y%m%d).log"),
        Known("touch logs/app-$(date -d '7 days ago' +%Y%m%d).log"),  # has become that old
        Known("gzip logs/app-$(date -d '7 days ago' +%Y%m%d).log"),
        Known("tar -czf logs/archive-$(date +%Y%m).tar.gz logs/*.log"),
        Known('find logs/ -name "*.log" -mtime +30 -delete'),
        Known("cat > incidents/incident-$(date +%Y%m%d-%H%M).md << 'EOF'\n# Application Incident Report\nEOF"),
        Known("docker stats cloud-native-poc --no-stream >> metrics/daily-stats.txt"),
        Known(
            "MEM_USAGE=$(docker stats cloud-native-poc --no-stream --format \"{{.MemPerc}}\" | sed 's/%//')\n"
            '[ "${MEM_USAGE%.*}" -gt 90 ] && echo "ALERT: High memory usage: ${MEM_USAGE}%" || true',
            r"\A\Z",
        ),
    ],
    "restart": [
        Known("docker-compose restart"),
        Known("docker restart cloud-native-poc"),
        Known("docker stop -t 30 cloud-native-poc"),
        Known("docker start cloud-native-poc"),
    ],
    "build and replace": [
        Known("git log --oneline -5", "state"),
        Known("git pull origin main", "up to date"),
        Known("make build"),
        Known("docker tag cloud-native-poc:latest cloud-native-poc:v1.2.0"),
        Known("docker-compose build"),
        Known("docker-compose up -d --build"),
        Known("docker-compose up -d --no-deps --build app"),
        Known("make stop"),
        Known("make run"),
    ],
    "go back to an earlier image": [
        Known("docker-compose down"),
        Known(
            "docker run -d \\\n  -p 8000:8000 \\\n  -v $(pwd)/data:/app/data \\\n  --name cloud-native-poc \\\n"
            "  cloud-native-poc:v1.1.0",
            "",
            "starts",
        ),
        Known("docker wait cloud-native-poc", "^2$"),
        Known("docker-compose stop", r"^(?!.*cloud-native-poc Stopped)"),
        Known("docker-compose up -d  # beside it", "is already in use by container", fails=True),
        Known("docker rm -f cloud-native-poc"),
        Known("docker-compose up -d"),
    ],
    "back up": [
        Known("docker-compose stop"),
        Known("cp data/app.db backups/app-$(date +%Y%m%d-%H%M).db"),
        Known("gzip backups/app-$(date +%Y%m%d-%H%M).db"),
        Known("docker-compose start"),
        Known('sqlite3 data/app.db ".backup backups/app-$(date +%Y%m%d-%H%M).db"'),
        Known('sqlite3 data/app.db ".backup backups/app-$(date +%Y%m%d).db"'),
        Known('sqlite3 data/app.db ".backup backups/app-pre-deploy-$(date +%Y%m%d).db"'),
        Known('find backups/ -name "app-*.db.gz" -mtime +7 -delete', "", "deletes"),
        Known('find backups/ -name "app-*.db.gz" -mtime +30 -delete', "", "deletes"),
        Known("chmod +x scripts/backup.sh"),
        Known("scripts/backup.sh", "^Backup completed: backups/app-.*db.gz$"),
    ],
    "put a backup in place": [
        Known("docker-compose stop"),
        Known("cp data/app.db data/app.db.before-restore"),
        Known(f"gunzip -c {OLD_BACKUP}.gz > data/app.db"),
        Known('sqlite3 data/app.db "PRAGMA integrity_check;"', "^ok$"),
        Known("docker-compose start"),
        Known(f"curl {URL}/api/items", '"kept"'),
    ],
    "copy a backup into place": [
        Known("docker-compose stop"),
        Known(f"cp {OLD_BACKUP} data/app.db"),
        Known("docker-compose start"),
        Known(f"curl {URL}/api/items", '"kept"'),
    ],
    "serve the newest backup": [
        Known("cp backups/app-latest.db data/app.db && docker restart cloud-native-poc", "No such file", "fails", True),
        Known("docker-compose down"),
        Known("gunzip -c backups/app-latest.db.gz > data/app.db"),
        Known("chmod 644 data/app.db"),
        Known("chown 1000:1000 data/app.db"),
        Known("docker-compose up -d"),
        Known(f"curl {URL}/api/items", '"kept"'),
    ],
    "remove what is taken for a lock": [
        Known("rm data/app.db-shm data/app.db-wal && docker restart cloud-native-poc", "", "loses"),
        Known(f"curl {URL}/api/items", '"kept"'),
        Known("docker-compose stop"),
        Known("rm data/app.db-shm data/app.db-wal", "No such file", "loses", True),
        Known("docker-compose start"),
    ],
    "test": [Known("pytest tests/test_api.py -v", "not found", "fails", True)],
    "free the port": [
        Known("kill $(lsof -ti :8000)", "", "kills"),
        Known(f"curl -f {URL}/health || echo 'ALERT: Health check failing'", "ALERT"),
        Known("docker restart cloud-native-poc"),
        Known(f"curl {URL}/health", "healthy"),
    ],
}

# An editor, a page for a browser, hours, or what the world outside must answer; the table has the marked ones
NOT_TYPED: dict[str, str] = {
    "make test": "",
    "make test-coverage": "",
    "make test-docker": "",
    "open htmlcov/index.html": "",
    "docker-compose build --no-cache": "",
    "git checkout <previous-commit>": "",
    "crontab -e": "",
    "cat > scripts/backup.sh": "overwrites",
    "vi docker-compose.yml": "works",
    "vi requirements.txt": "lasts",
    "docker pull python:3.11-slim": "pulls",
}
