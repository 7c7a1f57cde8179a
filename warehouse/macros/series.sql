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
