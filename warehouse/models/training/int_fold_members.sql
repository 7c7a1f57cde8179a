-- The rows of each fold: valid prices of the training window only.
with rows_of_window as (
    select
        observation_id,
        month,
        {{ hash_share('observation_id') }} as share
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
