-- Where the rows of each load are now: every landed row ends in exactly one place. Of a file of later prices all rows
-- are in raw.actuals, and landed are those that became rows of observations.
with loaded_files as (
    select
        batch,
        file,
        rows as rows_in_file
    from {{ source('raw', 'files') }}
    where status in ('loaded', 'resolved')
),

actuals as (
    select
        _batch as batch,
        count(*) as actuals
    from {{ source('raw', 'actuals') }}
    group by _batch
),

landed as (
    select
        _batch as batch,
        _file as file,
        count(*) as landed
    from {{ source('raw', 'observations') }}
    group by _batch, _file
),

accepted as (
    select
        _batch as batch
        {%- for split in ['train', 'eval', 'holdout', 'to_score'] %},
        sum(case when split = '{{ split }}' then 1 else 0 end) as accepted_{{ split }}
        {%- endfor %},
        count(*) as accepted
    from {{ ref('features') }}
    group by _batch
),

rejected as (
    select
        _batch as batch,
        count(*) as rejected
    from {{ ref('int_observations_rejected') }}
    group by _batch
),

counted as (
    select
        coalesce(landed.batch, loaded_files.batch) as batch,
        coalesce(landed.file, loaded_files.file) as file,
        coalesce(loaded_files.rows_in_file, 0) as rows_in_file,
        coalesce(actuals.actuals, 0) as actuals,
        coalesce(landed.landed, 0) as landed,
        coalesce(accepted.accepted_train, 0) as accepted_train,
        coalesce(accepted.accepted_eval, 0) as accepted_eval,
        coalesce(accepted.accepted_holdout, 0) as accepted_holdout,
        coalesce(accepted.accepted_to_score, 0) as accepted_to_score,
        coalesce(rejected.rejected, 0) as rejected,
        coalesce(landed.landed, 0) - coalesce(accepted.accepted, 0) - coalesce(rejected.rejected, 0) as difference
    from loaded_files
    full outer join landed on loaded_files.batch = landed.batch and loaded_files.file = landed.file
    left join actuals on coalesce(landed.batch, loaded_files.batch) = actuals.batch
    left join accepted on coalesce(landed.batch, loaded_files.batch) = accepted.batch
    left join rejected on coalesce(landed.batch, loaded_files.batch) = rejected.batch
),

final as (
    select
        batch,
        file,
        cast(rows_in_file as bigint) as rows_in_file,
        cast(actuals as bigint) as actuals,
        cast(landed as bigint) as landed,
        {%- for split in ['train', 'eval', 'holdout', 'to_score'] %}
        cast(accepted_{{ split }} as bigint) as accepted_{{ split }},
        {%- endfor %}
        cast(rejected as bigint) as rejected,
        cast(difference as bigint) as difference,
        case
            when difference = 0 and rows_in_file = case when actuals > 0 then actuals else landed end then 'pass'
            else 'fail'
        end as status
    from counted
)

select * from final
