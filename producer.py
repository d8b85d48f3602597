"""The producer: Gmail into the Redis Stream. `python producer.py --help` lists its options."""

from src._venv import run_process

if __name__ == "__main__":
    run_process("producer")
