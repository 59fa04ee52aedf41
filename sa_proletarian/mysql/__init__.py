"""MariaDB and MySQL: the verbs in the SQL that both servers know.

Neither has UPDATE … RETURNING, arrays, or a CTE that writes. So a verb locks the rows first, which says whose they are, and
then moves them by further statements in the same transaction; where PostgreSQL skips what others hold, so does that lock.
"""
