-- Error of each version over its whole split.
{{ judged_errors(['all']) }}
