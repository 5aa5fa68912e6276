"""What the subcommands of gram-fast share: options and files come in, rows and tables go out."""
