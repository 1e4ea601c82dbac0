"""The command line and the console.

The module of a command is imported when the command is called, so `billing --help` imports none of them.

    main                 `billing`: finds and runs the command; listing: all commands, with one line of help each
    account_commands     commands about one account; operator_commands: about shards, buckets and cutoffs
    method_commands      commands made of rows of the table of methods
    audit_command, completion_command, export_command, reconcile_command, statement_command, cluster_commands,
    token_commands       the commands of these names
    console              `billing console`
    journal_dump         `billing journal dump`; entry_fields: the named fields of an entry that it prints
    online_check         `billing doctor --online`; online_statements: its check of statements
    calling              calls the daemon for a command; finding: finds the configuration and the daemon's address
    options              options and groups; vocabulary: other names of commands; places: directories as arguments
    confirming           asks the person before a command does what cannot be undone
    output               writes to standard output and error; showing: prints a reply; paging: lists, page by page
    tables, sentences    format rows and accounts for people; values: formats one value; method_page: one method
    csv_lines            the lines of a CSV file, for import and reconcile
    periods              parses days, months and instants as people write them
"""
