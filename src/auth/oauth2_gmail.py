"""Entry point for `python -m src.auth.oauth2_gmail`; the code is in `email_ingestion.cli.oauth2`."""

from src._venv import reexec_in_venv

reexec_in_venv()

if __name__ == "__main__":
    from email_ingestion.cli.exit_codes import run
    from email_ingestion.cli.oauth2 import oauth2

    run(oauth2)
