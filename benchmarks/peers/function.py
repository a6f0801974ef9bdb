"""FastAPI and SQLAlchemy as a Lambda function."""

from mangum import Mangum

from benchmarks.peers.fastapi_sync import app

handler = Mangum(app, lifespan="off")
