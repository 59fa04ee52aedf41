"""What the fault suite is made of: workers as scripts, ledgers outside the database, a checker, a proxy, records of runs."""
