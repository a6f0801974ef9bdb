"""The gate that AUTH_MODE names. What only one of them needs is imported with it."""

import socket

from core.errors import SettingsError
from handler.callers import Gate
from infra.database import Database
from infra.settings import Settings


def gate_for(settings: Settings, database: Database) -> Gate:
    match settings.auth_mode:
        case "keys":
            from handler.callers.keys import ByKey

            return ByKey(database)
        case "jwt":
            from handler.callers.tokens import ByToken

            return ByToken(settings)
        case "iam":
            from handler.callers.iam import ByIam

            return ByIam(settings.iam_ops_arns)
        case "none":
            from handler.callers.anybody import Everybody

            return Everybody()
        case _:
            from handler.callers.anybody import ThisMachine

            return ThisMachine()


def check_function_mode(settings: Settings) -> None:
    """Raises SettingsError for what a function on Lambda cannot do."""
    if settings.auth_mode is None:
        raise SettingsError(
            "AUTH_MODE is not set: say whom the function lets in; iam, keys, jwt, or none for everybody"
        )
    if settings.auth_mode == "keys" and not (settings.replica_url or settings.database_url):
        raise SettingsError("AUTH_MODE=keys needs REPLICA_URL or DATABASE_URL: keys are made, and revoked, there")


def check_server_mode(settings: Settings) -> None:
    """Raises SettingsError for what a server cannot do."""
    if settings.auth_mode == "iam":
        raise SettingsError(
            "AUTH_MODE=iam is for Lambda, whose events have an identity that AWS has verified; use keys"
        )
    if settings.auth_mode == "jwt":
        from handler.callers.tokens import check_jwt_settings

        check_jwt_settings(settings)


def check_listening(settings: Settings) -> None:
    """Raises SettingsError when others can reach the server and nobody has said whom it lets in."""
    if settings.auth_mode is None and not _is_this_machine(settings.host):
        raise SettingsError(
            f"HOST={settings.host!r} lets other machines in, and AUTH_MODE does not say whom: set AUTH_MODE=keys, with "
            "a key made by `python -m infra keys create NAME --scope read`; or AUTH_MODE=none, which lets in everybody"
        )


def _is_this_machine(host: str) -> bool:
    from handler.callers.anybody import is_loopback

    return all(is_loopback(address[4][0]) for address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
