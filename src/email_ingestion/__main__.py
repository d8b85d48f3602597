"""`python -m email_ingestion` is the console script."""

from email_ingestion.cli.main import main

main()
