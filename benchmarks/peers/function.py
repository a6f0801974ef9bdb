"""FastAPI and SQLAlchemy as a Lambda function."""

from mangum import Mangum

from benchmarks.peers.fastapi_threads import app

handler = Mangum(app, lifespan="off")
