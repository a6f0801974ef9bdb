"""README's "Make it yours", done in a copy of the project that has run before: orders beside the items."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import apsw
import httpx2
import pytest

from tests.conftest import assert_problem
from tests.e2e.checkout import cloned
from tests.e2e.processes import ROOT, Process, StartProcess, starting_processes, until

pytestmark = pytest.mark.e2e

NEW_FILES = {
    "core/migrations/0004_orders.sqlite.sql": """\
-- Orders; each is of one item
CREATE TABLE orders (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    item_id INTEGER NOT NULL REFERENCES items (id),
    quantity INTEGER NOT NULL CHECK (quantity > 0),
    note TEXT DEFAULT 'none; really',
    created_at TEXT NOT NULL
);

CREATE INDEX idx_orders_created ON orders (created_at);
CREATE INDEX idx_orders_item ON orders (item_id);

/* An order takes what it needs; of what is not there, nothing */
CREATE TRIGGER orders_take AFTER INSERT ON orders BEGIN
    SELECT RAISE(ABORT, 'Not so many are left; order fewer')
    WHERE NEW.quantity > (SELECT quantity FROM items WHERE id = NEW.item_id);
    UPDATE items SET quantity = quantity - NEW.quantity, version = version + 1 WHERE id = NEW.item_id;
END;
""",
    "core/migrations/0004_orders.postgresql.sql": """\
-- Orders; each is of one item
CREATE TABLE IF NOT EXISTS orders (
    id bigint GENERATED ALWAYS AS IDENTITY (CACHE 1) PRIMARY KEY,
    item_id bigint NOT NULL REFERENCES items (id),
    quantity bigint NOT NULL CHECK (quantity > 0),
    note text COLLATE "C" DEFAULT 'none; really',
    created_at text COLLATE "C" NOT NULL
);

CREATE INDEX IF NOT EXISTS idx_orders_created ON orders (created_at, id);
CREATE INDEX IF NOT EXISTS idx_orders_item ON orders (item_id);

/* An order takes what it needs; of what is not there, nothing */
CREATE OR REPLACE FUNCTION orders_take() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE items SET quantity = quantity - NEW.quantity, version = version + 1
    WHERE id = NEW.item_id AND quantity >= NEW.quantity;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'Not so many are left; order fewer';
    END IF;
    RETURN NEW;
END
$$;

CREATE OR REPLACE TRIGGER orders_take AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION orders_take();
""",
    "core/orders.py": '''\
"""The use cases of orders."""

from peewee import Database

from core.errors import FieldError, InvalidInput, OrderNotFound
from core.items import ITEMS
from core.models import Order
from core.pages import page_of
from core.schemas import NewOrder, OrderPage, OrderView, PageQuery
from core.stored import Stored, now

ORDERS = Stored(Order, OrderView.from_row)


def list_orders(db: Database, query: PageQuery) -> OrderPage:
    orders, next_cursor = page_of(db, ORDERS, query)
    return OrderPage(orders=orders, next_cursor=next_cursor)


def create_order(db: Database, new: NewOrder) -> OrderView:
    if not ITEMS.has(db, new.item_id):
        raise InvalidInput([FieldError("item_id", f"there is no item {new.item_id}")])
    return ORDERS.insert(db, item=new.item_id, quantity=new.quantity, note=new.note, created_at=now())


def get_order(db: Database, order_id: int) -> OrderView:
    if order := ORDERS.find(db, order_id):
        return order
    raise OrderNotFound(order_id)
''',
    "handler/orders.py": '''\
"""/api/orders"""

from functools import partial

from handler.endpoint import Endpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from core import orders
from core.schemas import NewOrder, OrderPage, OrderView, PageQuery
from handler.answers import Shown, created
from handler.openapi import operation
from handler.requests import id_of, read_json, read_query
from handler.service import read, write


class OrderList(Endpoint):
    @operation("list_orders", "List orders", query=PageQuery, answers={200: OrderPage})
    async def get(self, request: Request) -> Response:
        query = read_query(request, PageQuery)
        return Shown(await read(request, partial(orders.list_orders, query=query)))

    @operation("create_order", "Order an item", body=NewOrder, answers={201: OrderView})
    async def post(self, request: Request) -> Response:
        new = await read_json(request, NewOrder)
        use_case = partial(orders.create_order, new=new)
        return await write(request, use_case, lambda order: created(order, f"/api/orders/{order.id}"))


@operation("get_order", "Read an order", answers={200: OrderView})
async def order(request: Request) -> Response:
    return Shown(await read(request, partial(orders.get_order, order_id=id_of(request))))


routes = [
    Route("/api/orders", OrderList),
    Route("/api/orders/{order_id}", order),
]
''',
}
AT_THE_END = {
    "core/errors.py": """

class OrderNotFound(NotFound):
    def __init__(self, order_id: int) -> None:
        super().__init__(f"There is no order {order_id}.")
""",
    "core/models.py": '''

class Order(Model):
    """A row of `orders`."""

    id = AutoField()
    item = ForeignKeyField(Item)
    quantity = IntegerField()
    note = TextField(null=True)
    created_at = TextField()

    class Meta:
        table_name = "orders"
''',
    "core/schemas.py": '''

class NewOrder(_Input):
    """An order as a caller makes it."""

    item_id: Annotated[int, Field(ge=1, le=MAX_INTEGER), WHOLE]
    quantity: Annotated[int, Field(ge=1, le=MAX_INTEGER), WHOLE] = 1
    note: Description | None = None


@dataclass(slots=True)
class OrderedItem:
    id: int
    quantity: int


@dataclass(slots=True)
class OrderView:
    """An order as the API answers it."""

    id: int
    item: OrderedItem
    note: str | None
    created_at: Time

    @classmethod
    def from_row(cls, id: int, item: int, quantity: int, note: str | None, created_at: str) -> "OrderView":
        return cls(id, OrderedItem(item, quantity), note, created_at)


class OrderPage(BaseModel):
    orders: list[OrderView]
    next_cursor: str | None
''',
}
IN_PLACE = {
    "core/models.py": ("import AutoField, ", "import AutoField, ForeignKeyField, "),
    "handler/asgi.py": (
        "from handler import dashboard, docs, items, ops,",
        "from handler import dashboard, docs, items, ops, orders,",
    ),
}
ROUTES = ("*items.routes]", "*items.routes, *orders.routes]")


def add_orders(copy: Path) -> None:
    for name, text in NEW_FILES.items():
        assert not (copy / name).exists()
        (copy / name).write_text(text)
    for name, text in AT_THE_END.items():
        (copy / name).write_text((copy / name).read_text() + text)
    for name, (before, after) in [*IN_PLACE.items(), ("handler/asgi.py", ROUTES)]:
        found = (copy / name).read_text()
        assert found.count(before) == 1
        (copy / name).write_text(found.replace(before, after))


def run(copy: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def start() -> Iterator[StartProcess]:
    with starting_processes(PORT="0", MAINTENANCE_INTERVAL_SECONDS="0") as start:
        yield start


class Instance:
    """A server of a copy, on the log that all of them share."""

    def __init__(self, start: StartProcess, copy: Path, name: str) -> None:
        data = copy.parent / name
        self.process: Process = start(
            *("env", f"--chdir={copy}", sys.executable, "-m", "handler"),
            DATABASE_PATH=str(data / "app.db"),
            REPLICA_URL=(copy.parent / "log").as_uri(),
            BACKUP_URL=(data / "backups").as_uri(),
        )

    @contextmanager
    def client(self) -> Iterator[httpx2.Client]:
        url = self.process.wait_for(r"Uvicorn running on (http://[0-9.:]+)")[1]
        with httpx2.Client(base_url=url, timeout=30, trust_env=False) as client:
            yield client


Clients = tuple[httpx2.Client, httpx2.Client]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cloned(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def clients(copy: Path, start: StartProcess) -> Iterator[Clients]:
    """Two instances with the new noun, on a log that the release before it has made: one has a file of that release."""
    before = Instance(start, copy, "one")
    with before.client() as client:
        for name in ("Lamp", "Torch"):
            assert client.post("/api/items", json={"name": name, "quantity": 10}).status_code == 201
        assert client.get("/api/orders").status_code == 404
    assert before.process.end() == -signal.SIGTERM
    add_orders(copy)
    run(copy, "make", "-o", ".venv/installed", f"VENV={Path(sys.executable).parent}", "openapi")
    one, two = Instance(start, copy, "one"), Instance(start, copy, "two")
    with one.client() as first, two.client() as second:
        yield first, second
    assert {one.process.end(), two.process.end()} == {-signal.SIGTERM}


@pytest.fixture
def on_postgresql(clients: Clients, copy: Path, start: StartProcess, database_url: str) -> Iterator[httpx2.Client]:
    """A server of the same copy."""
    with on(copy, start, database_url) as client:
        yield client


@contextmanager
def on(copy: Path, start: StartProcess, database_url: str) -> Iterator[httpx2.Client]:
    command = ("env", f"--chdir={copy}", sys.executable, "-m", "handler")
    process = start(*command, DATABASE_URL=database_url)
    url = process.wait_for(r"Uvicorn running on (http://[0-9.:]+)")[1]
    with httpx2.Client(base_url=url, timeout=30, trust_env=False) as client:
        yield client
    assert process.end() == -signal.SIGTERM


def order(client: httpx2.Client, **fields: object) -> httpx2.Response:
    return client.post("/api/orders", json={"item_id": 1, **fields})


def test_page_names_every_file_that_had_to_be_touched() -> None:
    section = (ROOT / "README.md").read_text().partition("\n## Make it yours\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([^`\s]+)`", section))
    assert {*NEW_FILES, *AT_THE_END, *IN_PLACE} - named == set()


def test_items_of_the_release_before_are_there_on_both(clients: Clients) -> None:
    for client in clients:
        assert [item["name"] for item in client.get("/api/items").json()["items"]] == ["Lamp", "Torch"]


def test_order_made_by_one_instance_is_read_from_the_other(clients: Clients) -> None:
    one, two = clients
    made = order(one, quantity=2, note="soon")
    assert made.status_code == 201, made.text
    view = made.json()
    assert (view["item"], view["note"]) == ({"id": 1, "quantity": 2}, "soon")
    seen = {"X-Commit-Txid": made.headers["x-commit-txid"]}
    assert two.get(made.headers["location"], headers=seen).json() == view
    assert two.get("/api/items/1", headers=seen).json()["quantity"] == 8


def test_order_that_the_caller_has_is_not_sent_again(clients: Clients) -> None:
    made = order(clients[0], item_id=2)
    known = {"If-None-Match": made.headers["etag"]}
    assert clients[0].get(made.headers["location"], headers=known).status_code == 304


def test_pages_lead_from_one_to_the_next(clients: Clients) -> None:
    made = [order(clients[0], item_id=2).json()["id"] for _ in range(3)]
    found, query = list[int](), {"limit": "2", "order": "-created_at"}
    while len(found) < len(made):
        page = clients[0].get("/api/orders", params=query).json()
        found += [order["id"] for order in page["orders"]]
        query["cursor"] = page["next_cursor"]
    assert found[:3] == made[::-1]


@pytest.mark.parametrize("name", ["999", "0", "-1"])
def test_order_that_is_not_there_is_404(clients: Clients, name: str) -> None:
    problem = assert_problem(clients[0].get(f"/api/orders/{name}"), 404)
    assert problem["detail"] == f"There is no order {name}."


@pytest.mark.parametrize("name", ["x", "1.0", "99999999999999999999"])
def test_what_is_no_id_is_404(clients: Clients, name: str) -> None:
    problem = assert_problem(clients[0].get(f"/api/orders/{name}"), 404)
    assert problem["detail"] == f"There is nothing at /api/orders/{name}."


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"quantity": 0}, "quantity"),
        ({"item_id": 2**64}, "item_id"),
        ({"colour": "red"}, "colour"),
        ({"item_id": 99}, "item_id"),
    ],
)
def test_order_that_is_not_valid_is_422(clients: Clients, fields: dict[str, object], field: str) -> None:
    problem = assert_problem(order(clients[0], **fields), 422)
    assert [error["field"] for error in problem["errors"]] == [field]


def test_what_a_trigger_refuses_is_409_in_its_words(clients: Clients) -> None:
    problem = assert_problem(order(clients[0], quantity=11), 409)
    assert "Not so many are left; order fewer" in problem["detail"]


def test_item_that_an_order_refers_to_stays(clients: Clients) -> None:
    made = order(clients[0])
    assert made.status_code == 201
    problem = assert_problem(clients[0].delete("/api/items/1"), 409)
    assert "a row would refer to one that is not there" in problem["detail"]
    assert clients[0].get("/api/items/1").status_code == 200


def test_the_same_is_served_from_postgresql(on_postgresql: httpx2.Client) -> None:
    client = on_postgresql
    assert client.post("/api/items", json={"name": "Lamp", "quantity": 4}).json()["id"] == 1
    made = order(client, quantity=2, note="soon")
    assert made.status_code == 201, made.text
    assert client.get(made.headers["location"]).json() == made.json()
    assert made.json()["item"] == {"id": 1, "quantity": 2}
    assert client.get("/api/items/1").json()["quantity"] == 2
    assert "Not so many are left; order fewer" in assert_problem(order(client, quantity=3), 409)["detail"]
    assert_problem(order(client, item_id=99), 422)
    assert_problem(client.delete("/api/items/1"), 409)
    first = client.get("/api/orders", params={"limit": "1"}).json()
    assert [order["id"] for order in first["orders"]] == [made.json()["id"]]
    assert_problem(client.get("/api/orders/999"), 404)


def test_what_a_shell_has_written_past_the_checks_is_served(clients: Clients, copy: Path) -> None:
    made = order(clients[0], item_id=2).json()
    with closing(apsw.Connection(str(copy.parent / "one" / "app.db"))) as connection:
        connection.set_busy_timeout(5000)
        connection.execute("UPDATE orders SET note = CAST(x'ff' AS TEXT) WHERE id = ?", (made["id"],))
    assert clients[0].get(f"/api/orders/{made['id']}").json() == {**made, "note": "\ufffd"}
    assert clients[0].get("/api/orders", params={"limit": "100"}).status_code == 200


def test_orders_move_with_the_items_and_take_nothing_twice(
    clients: Clients, copy: Path, start: StartProcess, database_url: str
) -> None:
    def infra(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "infra", *arguments]
        environment = os.environ | {"REPLICA_URL": (copy.parent / "log").as_uri()}
        return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)

    odd = infra("move", database_url)
    assert (odd.returncode, "note is no UTF-8" in odd.stderr) == (2, True), odd.stderr
    assert infra("sql", "UPDATE orders SET note = NULL WHERE note NOT IN ('none; really', 'soon')").returncode == 0
    moved = infra("move", database_url)
    assert moved.returncode == 0, moved.stderr
    with on(copy, start, database_url) as there:
        for path in ("/api/items", "/api/orders"):
            everything = {"limit": "100"}
            assert there.get(path, params=everything).json() == clients[0].get(path, params=everything).json()
        before = there.get("/api/items/2").json()["quantity"]
        newest = clients[0].get("/api/orders", params={"order": "-created_at"}).json()["orders"][0]["id"]
        assert order(there, item_id=2).json()["id"] == newest + 1
        assert there.get("/api/items/2").json()["quantity"] == before - 1  # its trigger is at work again
        assert_problem(there.delete("/api/items/2"), 409)  # and its foreign key
        assert assert_problem(order(clients[0]), 503)["code"] == "writes_stopped"
    undo = re.findall(r"python -m infra (restore --txid \w+)", moved.stdout)
    assert infra(*undo[0].split()).returncode == 0
    until(lambda: order(clients[0], item_id=2).status_code == 201)


def test_document_has_the_new_paths_and_all_that_is_nested(clients: Clients, copy: Path) -> None:
    document = clients[0].get("/openapi.json").json()
    assert document == json.loads((copy / "openapi.json").read_text())
    assert set(document["paths"]["/api/orders"]) == {"get", "post"}
    assert set(document["paths"]["/api/orders/{order_id}"]) == {"get"}
    schemas = document["components"]["schemas"]
    assert {"NewOrder", "OrderPage", "OrderView", "OrderedItem"} <= set(schemas)
    assert set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document))) <= set(schemas)


def test_requests_are_counted_by_the_new_routes(clients: Clients) -> None:
    clients[0].get("/api/orders/999")
    assert 'route="/api/orders/{order_id}",status="404"' in clients[0].get("/metrics").text


def test_projects_own_tests_of_its_house_pass_in_the_copy(clients: Clients, copy: Path) -> None:
    run(
        copy,
        sys.executable,
        "-m",
        "pytest",
        "tests/test_architecture.py",
        "tests/core",
        "-k",
        "architecture or migrations",
    )
