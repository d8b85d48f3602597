"""`python -m email_ingestion.sandbox`: the sandbox as a process."""

from .options import main

if __name__ == "__main__":
    raise SystemExit(main())
