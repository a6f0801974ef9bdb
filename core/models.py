"""Peewee models. They are bound to no database: a use case names one with `.execute(db)`."""

from peewee import AutoField, BlobField, CompositeKey, IntegerField, Model, TextField


class Item(Model):
    """A row of `items`. Money is whole cents; times are RFC 3339 UTC text, so text order is time order."""

    id = AutoField()
    name = TextField()
    description = TextField(null=True)
    price_cents = IntegerField(default=0)
    quantity = IntegerField(default=0)
    created_at = TextField()
    updated_at = TextField()
    version = IntegerField(default=1)

    class Meta:
        table_name = "items"


class IdempotencyKey(Model):
    """A row of `idempotency_keys`: a write that was sent with a key, and what it has answered."""

    hour = IntegerField()
    caller = TextField()
    key = TextField()
    fingerprint = BlobField()
    status = IntegerField()
    headers = TextField()
    body = BlobField()

    class Meta:
        table_name = "idempotency_keys"
        primary_key = CompositeKey("hour", "caller", "key")
