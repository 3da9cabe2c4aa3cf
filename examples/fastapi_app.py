"""
A FastAPI application whose endpoints publish, and handlers that know nothing of HTTP.

    python -m pip install . fastapi uvicorn
    python -m uvicorn --app-dir examples --factory fastapi_app:make_app

    curl localhost:8000/orders --json '{"order_id": "A-1", "total": "42.00"}' -H 'X-Request-ID: r-1'
    curl -X DELETE localhost:8000/orders/A-1 -H 'X-Request-ID: r-2'
    curl localhost:8000/trail

The bus lives as long as the application: it is made and closed in the lifespan. An async
endpoint awaits ``apublish``; a plain one, which FastAPI runs in a worker thread, calls
``publish``. Either reaches sync and async handlers. The id of the request becomes the
correlation id of all that follows from it, however many events further on.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Annotated
from uuid import uuid4

import attrs
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request, Response
from pydantic import BaseModel

from eventbus import Envelope, EventBus, event, on

# ------------------------------------------------------ events and handlers: no web in this part


@event(key="order_id")
class OrderPlaced:
    order_id: str
    total: Decimal


@event(key="order_id")
class OrderCancelled:
    order_id: str


@event(key="order_id")
class StockReserved:
    order_id: str


@attrs.define
class BackOffice:
    """
    The handlers, and what they have done: which, for which request.
    """

    bus: EventBus
    trail: list[tuple[str, str]] = attrs.field(factory=list)

    # Whoever publishes in turn and may be called in an event loop is async, and awaits.
    @on
    async def reserve_stock(self, placed: OrderPlaced) -> None:
        await self.bus.apublish(StockReserved(placed.order_id))

    @on
    async def send_mail(self, happened: OrderPlaced | OrderCancelled, envelope: Envelope) -> None:
        self.trail.append((envelope.correlation_id, f"mail: {envelope.name} {happened.order_id}"))

    @on
    def print_label(self, reserved: StockReserved, envelope: Envelope) -> None:
        self.trail.append((envelope.correlation_id, f"label: {reserved.order_id}"))


# ------------------------------------------------------------------------------ the web: publishes


def bus_of(request: Request) -> EventBus:
    bus: EventBus = request.app.state.bus
    return bus


def request_id_of(
    response: Response, x_request_id: Annotated[str | None, Header(max_length=64)] = None
) -> str:
    request_id = x_request_id or str(uuid4())
    response.headers["X-Request-ID"] = request_id
    return request_id


Bus = Annotated[EventBus, Depends(bus_of)]
RequestId = Annotated[str, Depends(request_id_of)]


class NewOrder(BaseModel):
    order_id: str
    total: Decimal


class Published(BaseModel):
    event_id: str
    handlers: int


router = APIRouter()


@router.post("/orders", status_code=201)
async def place_order(order: NewOrder, bus: Bus, request_id: RequestId) -> Published:
    receipt = await bus.apublish(
        OrderPlaced(order.order_id, order.total),
        idempotency_key=order.order_id,
        correlation_id=request_id,
    )
    if receipt.duplicate:
        raise HTTPException(409, f"order {order.order_id} has been placed already")
    return Published(event_id=receipt.id, handlers=receipt.delivered)


@router.delete("/orders/{order_id}")
def cancel_order(order_id: str, bus: Bus, request_id: RequestId) -> Published:
    receipt = bus.publish(OrderCancelled(order_id), correlation_id=request_id)
    return Published(event_id=receipt.id, handlers=receipt.delivered)


@router.get("/trail")
async def show_trail(request: Request) -> list[tuple[str, str]]:
    office: BackOffice = request.app.state.office
    return office.trail


def make_app() -> FastAPI:
    """
    Make an application with a bus of its own, which a test may do as often as it likes.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with EventBus(name="shop") as bus:
            app.state.bus = bus
            app.state.office = BackOffice(bus)
            bus.include(app.state.office)
            yield

    app = FastAPI(title="shop", lifespan=lifespan)
    app.include_router(router)
    return app
