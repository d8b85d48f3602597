"""`python -m gmail_sandbox`: the sandbox as a process."""

from gmail_sandbox.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
