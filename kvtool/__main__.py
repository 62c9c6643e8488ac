"""The program, as `kvtool` and `python -m kvtool` start it: Ctrl-C is seen to before anything slow is imported."""

from __future__ import annotations

from kvtool.system.interrupts import leave_on_interrupt, stay_until_the_end


def main() -> None:
    """Run the command line. It exits with a code, as `kvtool.cli.main` says."""
    leave_on_interrupt()
    from kvtool.cli import main as run

    try:
        run()
    finally:
        stay_until_the_end()


if __name__ == "__main__":
    main()
