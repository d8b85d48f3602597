"""`email-ingestion web`: the pages and the read API, as a process of its own; and a link by which a person comes in."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from email_ingestion.cli.common import audited, current_user
from email_ingestion.cli.exit_codes import OK
from email_ingestion.cli.output import say
from email_ingestion.settings import load_settings

web = typer.Typer(help="Serve the pages and the read API, until it is stopped.", invoke_without_command=True)


def serve() -> int:
    """Serve the pages and the read API, until it is stopped.

    It listens on WEB_HOST and WEB_PORT; producer and workers do without it.
    """
    from email_ingestion.web.process import run_web  # noqa: PLC0415 - keeps --help quick

    return run_web(load_settings())


@web.callback()
def _web(context: typer.Context) -> None:
    """Serve the pages and the read API, until it is stopped.

    It listens on WEB_HOST and WEB_PORT; producer and workers do without it.

    Examples:
      email-ingestion web
      email-ingestion web login-link
      WEB_PORT=8443 WEB_TLS_CERTIFICATE_FILE=cert.pem WEB_TLS_KEY_FILE=key.pem email-ingestion web
    """
    if context.invoked_subcommand is None:
        raise typer.Exit(serve())


@web.command("login-link")
def login_link(
    role: Annotated[Literal["reader", "operator"], typer.Option(help="reader sees, operator orders too.")] = "operator",
    user: Annotated[str, typer.Option(help="Who enters with it, as the audit log will say; default you.")] = "",
) -> int:
    """Print a link that lets one person into the pages once, within ten minutes.

    Examples:
      email-ingestion web login-link
      email-ingestion web login-link --role reader --user ada
    """
    from email_ingestion.fleet.web_process import web_url  # noqa: PLC0415
    from email_ingestion.ops.admin import ops_token  # noqa: PLC0415 - keeps --help quick
    from email_ingestion.web.login_links import make_link  # noqa: PLC0415

    settings = load_settings()
    name = user or current_user()
    with audited(settings.log_dir, "web login-link", {"for": name, "role": role}):
        link = make_link(ops_token(settings.ops_token_file), name, role)
    running = web_url(settings.pid_dir)
    if running is None:
        say("the web process does not run here: a link that is older than the process is refused")
    base = settings.web_public_url or running or f"http://127.0.0.1:{settings.web_port}"
    typer.echo(f"{base}/login/{link}")
    return OK
