"""/api/items"""

from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from core import items
from core.schemas import CreatedItems, ExportQuery, ItemPage, ItemPatch, ItemQuery, ItemView, NewItem, NewItems
from handler.answers import Shown, created, created_together, no_content
from handler.conditions import guarded
from handler.endpoint import Endpoint
from handler.export import CSV, NDJSON, exported, form_for
from handler.openapi import operation
from handler.requests import MERGE_PATCH, id_of, read_json, read_query
from handler.service import read, write
from infra.database import UseCase


class ItemList(Endpoint):
    @operation("list_items", "List items", query=ItemQuery, answers={200: ItemPage})
    async def get(self, request: Request) -> Response:
        query = read_query(request, ItemQuery)
        return Shown(await read(request, partial(items.list_items, query=query)))

    @operation("create_item", "Create an item", body=NewItem, answers={201: ItemView})
    async def post(self, request: Request) -> Response:
        new = await read_json(request, NewItem)
        use_case = partial(items.create_item, new=new)
        return await write(request, use_case, lambda item: created(item, f"/api/items/{item.id}"))


class ItemBatch(Endpoint):
    @operation("create_items", "Create up to 500 items, all or none", body=NewItems, answers={201: CreatedItems})
    async def post(self, request: Request) -> Response:
        new = await read_json(request, NewItems)
        return await write(request, partial(items.create_items, new=new), created_together)


class ItemExport(Endpoint):
    @operation(
        "export_items",
        "Export all items as NDJSON or CSV",
        query=ExportQuery,
        answers={200: (NDJSON, CSV)},
        problems=(406, 507),
    )
    async def get(self, request: Request) -> Response:
        query = read_query(request, ExportQuery)
        form = form_for(request, query.format)
        return await exported(request, "items", ItemView, form, partial(items.export_items, query=query))


class ItemDetail(Endpoint):
    @operation("get_item", "Read an item", answers={200: ItemView})
    async def get(self, request: Request) -> Response:
        return Shown(await read(request, _find(request)))

    @operation("replace_item", "Replace an item", body=NewItem, answers={200: ItemView})
    async def put(self, request: Request) -> Response:
        new = await read_json(request, NewItem)
        change = partial(items.replace_item, item_id=id_of(request), new=new)
        return await write(request, guarded(request, _find(request), change), Shown)

    @operation("patch_item", "Change some fields", body=ItemPatch, body_types=MERGE_PATCH, answers={200: ItemView})
    async def patch(self, request: Request) -> Response:
        patch = await read_json(request, ItemPatch, MERGE_PATCH)
        change = partial(items.patch_item, item_id=id_of(request), patch=patch)
        return await write(request, guarded(request, _find(request), change), Shown)

    @operation("delete_item", "Delete an item", answers={204: ()})
    async def delete(self, request: Request) -> Response:
        change = partial(items.delete_item, item_id=id_of(request))
        return await write(request, guarded(request, _find(request), change), no_content)


def _find(request: Request) -> UseCase[ItemView]:
    return partial(items.get_item, item_id=id_of(request))


routes = [
    Route("/api/items", ItemList),
    Route("/api/items/batch", ItemBatch),
    Route("/api/items/export", ItemExport),
    Route("/api/items/{item_id}", ItemDetail),
]
