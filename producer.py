"""The producer: Gmail into the Redis Stream. `python producer.py --help` lists its options."""

from src._venv import reexec_in_venv

reexec_in_venv()

if __name__ == "__main__":
    from email_ingestion.cli.processes import producer, run_process

    run_process(producer)
