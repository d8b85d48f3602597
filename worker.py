"""The worker: from the Redis Stream into the sinks. `python worker.py --help` lists its options."""

from src._venv import run_process

if __name__ == "__main__":
    run_process("worker")
