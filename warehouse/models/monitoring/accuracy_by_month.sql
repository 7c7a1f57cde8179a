-- Error of each version month by month.
{{ judged_errors(['month'], ['month']) }}
