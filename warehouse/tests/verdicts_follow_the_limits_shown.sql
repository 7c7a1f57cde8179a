-- A value that warns or fails lies outside the limits that stand beside it, any other within.
select
    model_version,
    month,
    check_name
from {{ ref('checks') }}
where
    status in ('pass', 'warn', 'fail')
    and value is not null
    and coalesce(lower_limit, upper_limit) is not null
    and (status = 'pass') <> (value between coalesce(lower_limit, value) and coalesce(upper_limit, value))
