-- How far predictions, residuals and prices of each scored month are from what the version was made and judged with.
{{ judged_drift(prediction_values().keys() | list) }}
