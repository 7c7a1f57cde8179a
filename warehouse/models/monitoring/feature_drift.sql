-- How far the features of each scored month are from what the version learned from.
{{ judged_drift(feature_names()) }}
