-- The rows of each fold: valid prices of the training window only.
{#- without dates, keys below this share of the hash are the holdout: folds are parts of the others #}
{%- set held_out = 0.0 if contract().observed_on else holdout_share() %}
with rows_of_window as (
    select
        observation_id,
        month,
        ({{ hash_share('observation_id') }} - {{ held_out }}) / (1 - {{ held_out }}) as share
    from {{ ref('features') }}
    where split in ('train', 'eval') and is_price_valid
),

folds as (
    select * from {{ ref('folds') }}
),

final as (
    select
        rows_of_window.observation_id,
        folds.fold,
        folds.role
    from rows_of_window
    inner join folds
        on
            rows_of_window.month = folds.month
            and rows_of_window.share >= folds.share_from
            and rows_of_window.share < folds.share_to
)

select * from final
