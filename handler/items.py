"""/api/items"""

from functools import partial

from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from core import items
from core.schemas import ItemPage, ItemPatch, ItemQuery, ItemView, NewItem
from handler.answers import answer, created, no_content
from handler.openapi import operation
from handler.requests import MERGE_PATCH, id_of, read_json, read_query
from handler.service import read, write


class ItemList(HTTPEndpoint):
    @operation("list_items", "List items", query=ItemQuery, answers={200: ItemPage})
    async def get(self, request: Request) -> Response:
        query = read_query(request, ItemQuery)
        return answer(await read(request, partial(items.list_items, query=query)))

    @operation("create_item", "Create an item", body=NewItem, answers={201: ItemView})
    async def post(self, request: Request) -> Response:
        new = await read_json(request, NewItem)
        use_case = partial(items.create_item, new=new)
        return await write(request, use_case, lambda item: created(item, f"/api/items/{item.id}"))


class ItemDetail(HTTPEndpoint):
    @operation("get_item", "Read an item", answers={200: ItemView})
    async def get(self, request: Request) -> Response:
        use_case = partial(items.get_item, item_id=id_of(request))
        return answer(await read(request, use_case))

    @operation("replace_item", "Replace an item", body=NewItem, answers={200: ItemView})
    async def put(self, request: Request) -> Response:
        use_case = partial(items.replace_item, item_id=id_of(request), new=await read_json(request, NewItem))
        return await write(request, use_case, answer)

    @operation("patch_item", "Change some fields", body=ItemPatch, body_types=MERGE_PATCH, answers={200: ItemView})
    async def patch(self, request: Request) -> Response:
        patch = await read_json(request, ItemPatch, MERGE_PATCH)
        use_case = partial(items.patch_item, item_id=id_of(request), patch=patch)
        return await write(request, use_case, answer)

    @operation("delete_item", "Delete an item", answers={204: ()})
    async def delete(self, request: Request) -> Response:
        return await write(request, partial(items.delete_item, item_id=id_of(request)), no_content)


routes = [
    Route("/api/items", ItemList),
    Route("/api/items/{item_id}", ItemDetail),
]
