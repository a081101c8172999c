//! Text from elsewhere, made harmless: names in manifests and of processes are written by strangers.

use std::borrow::Cow;

/// Escapes what could steer a terminal or turn the reading order round: control characters, bidirectional overrides, invisible
/// separators. Everything else stays.
#[must_use]
pub fn clean(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_hostile) {
        return Cow::Borrowed(text);
    }
    let escape = |c: char| if is_hostile(c) { c.escape_unicode().collect() } else { String::from(c) };
    Cow::Owned(text.chars().map(escape).collect())
}

/// Whether a character could steer a terminal or mislead a reader.
#[must_use]
pub fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

/// Escapes text for an HTML document.
#[must_use]
pub fn html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in clean(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{clean, html};

    #[test]
    fn hostile_characters_are_shown_and_not_obeyed() {
        assert_eq!(clean("default-deny"), "default-deny");
        assert_eq!(clean("é日本"), "é日本");
        assert_eq!(clean("a\u{1b}[2Jb\r\n"), "a\\u{1b}[2Jb\\u{d}\\u{a}");
        assert_eq!(clean("x\u{202e}y\u{200b}"), "x\\u{202e}y\\u{200b}");
        assert_eq!(html("<b a='\"&\u{7}'>"), "&lt;b a=&#39;&quot;&amp;\\u{7}&#39;&gt;");
    }
}
