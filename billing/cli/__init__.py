"""The command line and the console.

A command's module is imported when it is called, so `billing --help` imports none.

    main                 `billing`, from its first word to a command; listing: the list of commands, a line of help each
    account_commands     commands about one account; operator_commands: about shards, buckets and cutoffs
    method_commands      commands made of rows of the table of methods
    audit_command, completion_command, export_command, reconcile_command, statement_command, cluster_commands,
    token_commands       the commands of these names
    console              `billing console`
    journal_dump         `billing journal dump`; entry_fields: an entry as it shows it
    online_check         `billing doctor --online`; online_statements: what it asks of statements
    calling              how a command calls the daemon; finding: where the configuration and the daemon are
    options              options and groups; vocabulary: which name is which method; places: directories
    confirming           asks before what cannot be undone
    output               standard output and error; showing: a reply, printed; paging: lists, page by page
    tables, sentences    rows and an account as people read them; values: a value; method_page: a method
    periods              days and months as people name them
"""
