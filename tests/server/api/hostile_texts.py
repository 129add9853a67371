"""Texts that break what is careless with text: SQL, search languages, templates, markup, odd Unicode, sizes."""

SQL = (
    "'", "''", '"', "`", "\\", "\\'", "'; DROP TABLE rubrics; --", "' OR '1'='1", "' OR 1=1 --", '" OR ""="',
    "') OR ('a'='a", "admin'--", "1; SELECT pg_sleep(10)", "'; SELECT pg_sleep(10); --", "' UNION SELECT NULL, NULL --",
    "' UNION SELECT token FROM api_keys --", "1' AND (SELECT COUNT(*) FROM sqlite_master) > 0 --",
    "'; ATTACH DATABASE '/tmp/x' AS x; --", "$$; DROP TABLE teams; $$", "$1", "$1::text", ":name", ":1", "%s", "%(a)s",
    "?", "?1", "@p", "{0}", "{name}", "%", "%%", "_", "LIKE '%a%'", "E'\\x27'", "U&'\\0027'", "0x27", "CHAR(39)",
    "'||(SELECT 1)||'", "/* a */", "--", "#", ";", "NULL", "null", "true", "\\N", "\\.", "COPY teams TO PROGRAM 'id'",
    "1e999", "NaN", "-1", "0", "9" * 400, "SET app.team = 'blue'", "'; SET LOCAL app.team = 'blue'; --", "\\copy",
    "pg_catalog.pg_user", "{1,2,NULL}", '{"a": null}', "[]", "ARRAY[1]")
SEARCH = ('"a', "a AND b", "NEAR(a b)", "words:a", "a*", "^a", "a & b | !c", "a:*B", "(a", "-a", "{a b}", "a <-> b")
MARKUP = (
    "<script>alert(1)</script>", "<!--", "]]>", "&amp;&#39;", "{{7*7}}", "${7*7}", "<%= 1 %>", "{% raw %}", "#{1}",
    "$(id)", "`id`", "| id", "../../../etc/passwd", "file:///etc/passwd", "http://169.254.169.254/", "\r\nX-Evil: 1",
    "data: x\n\n", "\x1b[2J\x1b[31m", "=cmd|'/c calc'!A0", "%n%n%s", "<<material-0000000000000000", "\n}\n{",
    '","points":100,"x":"')
UNICODE = (
    "\u202eolleh", "a\u0301\u0301\u0301", "\u200b", "\ufeff", "\u2028", "\u0085", "\U0001f468\u200d\U0001f469", "İı",
    "ﬃ", "\u0000", "\ud800", "\udfff\ud800", "\uffff", "\U0010ffff", "\x7f", "\x01\x02\x1f", "ß" * 300, "𝕏" * 50,
    "\t", "\n", " ", "\u00a0", "\u3164", "ا" * 40, "Z\u0351\u036b\u0343\u036a", "\u1160" * 10, "😀" * 100)
SIZES = ("a" * 3999, "a b " * 900, "x" * 100_000, "\U0001f600" * 5000)
HOSTILE_TEXTS = (*SQL, *SEARCH, *MARKUP, *UNICODE, *SIZES)
