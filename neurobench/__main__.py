"""The command ``neurobench``, which ``python -m neurobench`` is too."""


def main() -> None:
    """Run the command line."""
    try:
        from neurobench.cli import app

        app()
    except KeyboardInterrupt:
        # No command has begun, and there is nothing to say of it: one that has says what is kept.
        raise SystemExit(130) from None
    finally:
        # Ctrl-C while code in a string ran, as for a dataclass: `python -m` would die of it at the end, though it was
        # caught and answered by an exit code. Python forgets it when such code runs again.
        exec("")  # noqa: S102


if __name__ == "__main__":
    main()
