-- Error of each version by area and by price class.
{{ judged_errors(['area', 'price_decile'], ['segment_type', 'segment']) }}
