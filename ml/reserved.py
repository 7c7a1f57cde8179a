"""Names that a contract cannot give to a column or an encoding, because SQL or the models use them."""

from __future__ import annotations

#: Headers that loading uses itself.
LOADING = frozenset({"_file", "_row", "_loaded_at", "_batch", "file_row_number"})

#: Columns that the models make beside a dataset's own. Its price alone may be called what it is.
TAKEN = frozenset({
    "area", "built_through_batch", "encoding_month", "error_keys", "history_n", "is_price_valid", "labels",
    "last_year_price", "locality", "log_size", "month", "month_of_year", "observation_id", "observed_on",
    "parse_labels", "persistence_price", "price", "price_level", "price_reasons", "reasons", "split", "target",
    "target_offset",
})  # fmt: skip

#: Names of steps in ``features_as_of`` and ``encodings``, beside which each encoding stands under its own name.
STEPS = frozenset({
    "encoded", "encodings", "final", "history", "keyed", "last_month", "latest", "levelled", "market", "market_as_of",
    "observations", "overall", "reach", "sums", "unseen",
})  # fmt: skip

#: What ``features_as_of`` appends to an encoding's name.
SUFFIXES = ("value", "mean", "n", "frequency", "mean_compared", "unseen")

#: Words of SQL that cannot name a column or a table: those at which DuckDB's parser stumbles.
RESERVED_WORDS = frozenset({
    "all", "analyse", "analyze", "and", "anti", "any", "array", "as", "asc", "asof", "asymmetric", "at",
    "authorization", "binary", "both", "by", "case", "cast", "check", "collate", "collation", "column", "concurrently",
    "constraint", "create", "cross", "default", "deferrable", "desc", "describe", "distinct", "do", "else", "end",
    "except", "false", "fetch", "for", "foreign", "freeze", "from", "full", "glob", "group", "having", "ilike", "in",
    "initially", "inner", "intersect", "into", "is", "isnull", "join", "lambda", "lateral", "leading", "left", "like",
    "limit", "natural", "not", "notnull", "null", "offset", "on", "only", "or", "order", "outer", "overlaps", "pivot",
    "pivot_longer", "pivot_wider", "placing", "positional", "primary", "qualify", "references", "returning", "right",
    "select", "semi", "show", "similar", "some", "summarize", "symmetric", "table", "tablesample", "then", "to",
    "trailing", "true", "union", "unique", "unpack", "unpivot", "using", "variadic", "verbose", "when", "where",
    "window", "with",
})  # fmt: skip
