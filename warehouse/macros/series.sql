{#
  Incremental monitoring: a series (split x model_version) is measured again only when a row of it changed. int_series
  holds a fingerprint of each series' rows; what was measured carries the fingerprint it was measured at.
#}

{# Condition on `fingerprint`: rows of the model do not stand for this content yet. #}
{% macro is_new_series() %}
  {{ return('fingerprint not in (select fingerprint from ' ~ this ~ ')' if execute and is_incremental() else 'true') }}
{% endmacro %}

{# Pre-hook, in the model's transaction: what stands for content that `current` no longer has is forgotten first. #}
{% macro forget_changed_series(current) %}
  {% if execute and is_incremental() %}
    delete from {{ this }} where fingerprint not in (select fingerprint from {{ current }})
  {% endif %}
{% endmacro %}

{# Relation of the explained months with a fingerprint of what was explained: price levels and recent errors, the parts that change while features stay. #}
{% macro importance_months() -%}
(
    select
        model_version,
        month,
        concat_ws(' ', model_version, month, {{ content_fingerprint(['observation_id', 'contribution', 'built_through_batch']) }}) as fingerprint
    from {{ source('predictions', 'explanations') }}
    where rank = 0 or feature = '(recent errors)'
    group by model_version, month
)
{%- endmacro %}

{#
  Relation of the months that a version served, with a fingerprint of what was predicted and what came. A month of too few
  prices for a verdict is judged together with those before it, as many as give enough and at most a year in all; one
  without any price waits for its own.
#}
{% macro served_months() -%}
(
    with served as (
        select
            predicted.model_version,
            predicted.month,
            count(*) as n_served,
            count(known.actual_price) as n,
            {{ content_fingerprint([
                'predicted.observation_id', 'predicted.predicted_price', 'known.actual_price',
            ]) }} as content
        from {{ source('predictions', 'predictions') }} as predicted
        left join {{ ref('int_prediction_traits') }} as known
            on predicted.observation_id = known.observation_id and predicted.model_version = known.model_version
        where predicted.kind = 'model' and predicted.role = 'champion' and predicted.mode = 'batch'
        group by predicted.model_version, predicted.month
    ),

    together as (
        select
            judged.model_version,
            judged.month,
            judged.n_served,
            judged.n,
            served.month as also,
            served.content,
            sum(served.n) over (
                partition by judged.model_version, judged.month
                order by served.month desc rows between unbounded preceding and 1 preceding
            ) as n_later
        from served as judged
        inner join served
            on
                judged.model_version = served.model_version
                and served.month between {{ add_months('judged.month', -11) }} and judged.month
    ),

    least_n as (
        select max(lower_limit) as minimum_n
        from {{ ref('monitoring_thresholds') }}
        where metric = 'n'
    )

    select
        together.model_version,
        together.month,
        together.n_served,
        min(together.also) as judged_from,
        concat_ws(
            ' ', together.model_version, together.month, {{ joined_text('together.content', 'together.also') }}
        ) as fingerprint
    from together
    cross join least_n
    where together.also = together.month or (together.n > 0 and together.n_later < least_n.minimum_n)
    group by together.model_version, together.month, together.n_served
)
{%- endmacro %}
