//! Unrolls loops in WGSL. Drivers unroll few loops themselves, and in a loop that is not unrolled each iteration's
//! loads wait for those of the one before.

/// What marks a loop, at the end of its first line, before the most times that it runs:
/// `for (var k = 0u; k < 8u; k++) { // unroll 8`, up to the line `}` with the same indentation.
const MARK: &str = "{ // unroll ";

/// Replaces each marked loop by its body once for every value of the counter, a constant then, under the loop's
/// condition. A marked loop whose header or end has another form stays a loop; a test finds it.
pub fn unroll(text: &str) -> String {
    let mut out = String::with_capacity(4 * text.len());
    let mut rest = text;
    while let Some((line, after)) = rest.split_once('\n') {
        rest = after;
        let indent = &line[..line.len() - line.trim_start().len()];
        let end = format!("\n{indent}}}\n");
        let (Some((name, condition, count)), Some((body, after))) = (counter(line), after.split_once(&end))
        else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        rest = after;
        let body = unroll(&format!("{body}\n"));
        for i in 0..count {
            out.push_str(&format!("{indent}{{\n{indent}const {name} = {i}u;\n"));
            out.push_str(&format!("{indent}if ({condition}) {{\n{body}{indent}}}\n{indent}}}\n"));
        }
    }
    out + rest
}

/// The counter of a marked loop, its condition, and how often it runs at most.
fn counter(line: &str) -> Option<(&str, &str, u32)> {
    let (header, count) = line.trim().split_once(MARK)?;
    let (name, header) = header.strip_prefix("for (var ")?.split_once(" = 0u; ")?;
    Some((name, header.split_once("; ")?.0, count.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marked_loops_are_unrolled() {
        let text = "a;\n  for (var k = 0u; k < 2u; k++) { // unroll 2\n    for (var j = 0u; j < N; j++) { // unroll 2\n      f(j, k);\n    }\n  }\nfor (var i = 0u; i < 2u; i++) {\n}\n";
        let out = unroll(text);
        assert_eq!(out.matches("f(j, k);").count(), 4, "{out}");
        assert_eq!(out.matches("const k = 1u;").count(), 1, "{out}");
        assert_eq!(out.matches("const j = 1u;\n    if (j < N) {").count(), 2, "{out}");
        assert!(out.starts_with("a;\n") && out.ends_with("for (var i = 0u; i < 2u; i++) {\n}\n"), "{out}");
    }
}
