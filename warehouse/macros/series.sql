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

{# Relation of the explained months with a fingerprint of what was explained: the price levels, one a prediction. #}
{% macro importance_months() -%}
(
    select
        model_version,
        month,
        concat_ws(' ', model_version, month, {{ content_fingerprint(['observation_id', 'contribution', 'built_through_batch']) }}) as fingerprint
    from {{ source('predictions', 'explanations') }}
    where rank = 0
    group by model_version, month
)
{%- endmacro %}
