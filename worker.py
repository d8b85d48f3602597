"""The worker: from the Redis Stream into the sinks. `python worker.py --help` lists its options."""

from src._venv import reexec_in_venv

reexec_in_venv()

if __name__ == "__main__":
    from email_ingestion.cli.processes import run_process, worker

    run_process(worker)
