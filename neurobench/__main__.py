"""The command ``neurobench``, which ``python -m neurobench`` is too."""


def main() -> None:
    """Run the command line."""
    try:
        from neurobench.cli import app

        app()
    except KeyboardInterrupt:
        # No command has begun, and there is nothing to say of it: one that has says what is kept.
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
