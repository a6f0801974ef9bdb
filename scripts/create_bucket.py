"""Run by the local S3 (target `s3` of the Dockerfile) when it answers: makes the bucket, if it is not there yet."""

import http.client
import os
import sys

server = http.client.HTTPConnection("127.0.0.1", int(os.environ["GATEWAY_PORT"]))
server.request("PUT", "/" + os.environ["BUCKET"])
sys.exit(server.getresponse().status not in (200, 409))
