//! Connection strings as libpq reads them: `keyword = value` pairs, or a URL.
//!
//! The client library's own reader does not know all of libpq's keywords. What this one finds wrong it
//! names by its place, never by its text: that may be part of a password.

use crate::error::{self, Error, Result};

/// Keywords and values in the order given; of a keyword given twice the last one counts.
pub type Pairs = Vec<(String, String)>;

/// Reads a connection string of either form.
pub fn parse(conninfo: &str) -> Result<Pairs> {
    let url = ["postgresql://", "postgres://"]
        .iter()
        .find_map(|scheme| conninfo.strip_prefix(scheme));
    match url {
        Some(rest) => parse_url(rest),
        None => parse_pairs(conninfo),
    }
}

fn parse_pairs(text: &str) -> Result<Pairs> {
    let place = |rest: &str| text[..text.len() - rest.len()].chars().count() + 1;
    let mut pairs = Vec::new();
    let mut rest = skip_spaces(text);
    while !rest.is_empty() {
        let (keyword, value) =
            take_keyword(rest).ok_or_else(|| keyword_without_value(place(rest)))?;
        let (value, after) = take_value(value).ok_or_else(|| quote_without_end(place(value)))?;
        pairs.push((keyword.to_owned(), value));
        rest = skip_spaces(after);
    }
    Ok(pairs)
}

fn keyword_without_value(place: usize) -> Error {
    error::peer_conninfo_invalid(format!(
        "An equals sign is missing after the word at character {place}."
    ))
}

fn quote_without_end(place: usize) -> Error {
    error::peer_conninfo_invalid(format!(
        "The quoted value that begins at character {place} has no end."
    ))
}

/// As C's `isspace`.
fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t'..='\r')
}

fn skip_spaces(text: &str) -> &str {
    text.trim_start_matches(is_space)
}

/// The keyword, and what follows its equals sign.
fn take_keyword(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|character| character == '=' || is_space(character))?;
    let (keyword, rest) = text.split_at(end);
    let rest = skip_spaces(rest).strip_prefix('=')?;
    Some((keyword, skip_spaces(rest)))
}

/// The value, and what follows it; nothing when a quote is left open.
fn take_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('\'') else {
        return Some(take_until(text, is_space));
    };
    let (value, rest) = take_until(quoted, |character| character == '\'');
    Some((value, rest.strip_prefix('\'')?))
}

/// Up to the end character; a backslash makes the character after it an ordinary one.
fn take_until(text: &str, is_end: impl Fn(char) -> bool) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((position, character)) = characters.next() {
        match character {
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            end if is_end(end) => return (value, &text[position..]),
            other => value.push(other),
        }
    }
    (value, "")
}

fn parse_url(text: &str) -> Result<Pairs> {
    let (credentials, rest) = split_credentials(text);
    let (hosts, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (database, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut pairs = parse_credentials(credentials)?;
    pairs.extend(parse_hosts(hosts)?);
    pairs.push(decoded(
        "dbname",
        database.strip_prefix('/').unwrap_or_default(),
    )?);
    // A part left out of a URL is empty there, and a keyword of the query can give it.
    pairs.retain(|(_, value)| !value.is_empty());
    pairs.extend(parse_query(query)?);
    Ok(pairs)
}

fn split_credentials(text: &str) -> (&str, &str) {
    match text.find(['@', '/']) {
        Some(end) if text[end..].starts_with('@') => (&text[..end], &text[end + 1..]),
        _ => ("", text),
    }
}

fn parse_credentials(credentials: &str) -> Result<Pairs> {
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    Ok(vec![decoded("user", user)?, decoded("password", password)?])
}

fn parse_hosts(hosts: &str) -> Result<Pairs> {
    let pairs = hosts
        .split(',')
        .map(|place| {
            split_port(place).ok_or_else(|| {
                error::peer_conninfo_invalid("A host of the URL is not followed by its port.")
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let (names, ports): (Vec<&str>, Vec<&str>) = pairs.into_iter().unzip();
    Ok(vec![
        decoded("host", &names.join(","))?,
        decoded("port", &ports.join(","))?,
    ])
}

/// A host and its port; an IPv6 address stands in brackets.
fn split_port(place: &str) -> Option<(&str, &str)> {
    let Some(bracketed) = place.strip_prefix('[') else {
        return Some(place.split_once(':').unwrap_or((place, "")));
    };
    let (address, rest) = bracketed.split_once(']')?;
    match rest {
        "" => Some((address, "")),
        _ => Some((address, rest.strip_prefix(':')?)),
    }
}

fn parse_query(query: &str) -> Result<Pairs> {
    let parameter = |parameter: &str| {
        let (keyword, value) = parameter
            .split_once('=')
            .filter(|(_, value)| !value.contains('='))
            .ok_or_else(|| {
                error::peer_conninfo_invalid(
                    "A parameter of the URL is not one keyword, an equals sign and a value.",
                )
            })?;
        let (_, keyword) = decoded("keyword", keyword)?;
        let (_, value) = decoded("value", value)?;
        Ok((keyword, value))
    };
    query.split_terminator('&').map(parameter).collect()
}

fn decoded(part: &str, encoded: &str) -> Result<(String, String)> {
    let value = percent_decode(encoded).ok_or_else(|| {
        error::peer_conninfo_invalid(format!(
            "The {part} in the URL is not valid percent-encoded UTF-8."
        ))
    })?;
    Ok((part.to_owned(), value))
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => hexadecimal_digit(rest.next()?)? << 4 | hexadecimal_digit(rest.next()?)?,
            other => other,
        });
    }
    String::from_utf8(bytes)
        .ok()
        .filter(|text| !text.contains('\0'))
}

fn hexadecimal_digit(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pairs(expected: &[(&str, &str)]) -> Pairs {
        expected
            .iter()
            .map(|(keyword, value)| ((*keyword).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn pairs_are_read_as_libpq_reads_them() {
        let known: [(&str, &[(&str, &str)]); 9] = [
            ("", &[]),
            (" \t\n", &[]),
            ("host=a port=1", &[("host", "a"), ("port", "1")]),
            (" host = a\n port\t=\t1 ", &[("host", "a"), ("port", "1")]),
            (
                "password='a b\\'c\\\\'user=x",
                &[("password", "a b'c\\"), ("user", "x")],
            ),
            ("password=a\\ b\\\\", &[("password", "a b\\")]),
            ("password=a'b=c", &[("password", "a'b=c")]),
            ("password='' host=", &[("password", ""), ("host", "")]),
            ("host=a host=b", &[("host", "a"), ("host", "b")]),
        ];
        for (conninfo, expected) in known {
            assert_eq!(parse(conninfo).unwrap(), pairs(expected), "{conninfo}");
        }
    }

    #[test]
    fn urls_are_read_as_libpq_reads_them() {
        let known: [(&str, &[(&str, &str)]); 9] = [
            ("postgresql://", &[]),
            ("postgres://a", &[("host", "a")]),
            (
                "postgresql://me:p%3Aq@a:1/app?sslmode=require",
                &[
                    ("user", "me"),
                    ("password", "p:q"),
                    ("host", "a"),
                    ("port", "1"),
                    ("dbname", "app"),
                    ("sslmode", "require"),
                ],
            ),
            ("postgresql://a,b:2/", &[("host", "a,b"), ("port", ",2")]),
            (
                "postgresql://[::1]:5433,[::2]",
                &[("host", "::1,::2"), ("port", "5433,")],
            ),
            (
                "postgresql://%2Ftmp/app",
                &[("host", "/tmp"), ("dbname", "app")],
            ),
            (
                "postgresql:///app?host=a&password=%26%3D%25&",
                &[("dbname", "app"), ("host", "a"), ("password", "&=%")],
            ),
            (
                "postgresql://me:a?b@h",
                &[("user", "me"), ("password", "a?b"), ("host", "h")],
            ),
            (
                "postgresql://h?sslrootcert=/etc/ca.crt",
                &[("host", "h"), ("sslrootcert", "/etc/ca.crt")],
            ),
        ];
        for (conninfo, expected) in known {
            assert_eq!(parse(conninfo).unwrap(), pairs(expected), "{conninfo}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_without_its_text() {
        for bad in [
            "secret",
            "password=a secret",
            "password='secret",
            "password='secret\\'",
            "password = 'secret",
            "postgresql://me:secret%@a",
            "postgresql://me:secret%0@a",
            "postgresql://me:secret%00@a",
            "postgresql://me:secret%ff@a",
            "postgresql://me:secret@[::1",
            "postgresql://me:secret@[::1]x",
            "postgresql://a?password",
            "postgresql://a?password=secret=secret",
            "postgresql://a?x=1&&y=1",
        ] {
            let refused = parse(bad).expect_err(bad);
            assert!(!format!("{refused:?}").contains("secret"), "{refused:?}");
        }
        assert_eq!(
            parse("password=é secret").unwrap_err().detail.unwrap(),
            "An equals sign is missing after the word at character 12."
        );
    }

    fn quoted(value: &str) -> String {
        let escaped = value.replace('\\', "\\\\").replace('\'', "\\'");
        format!("'{escaped}'")
    }

    fn percent_encoded(value: &str) -> String {
        value.bytes().map(|byte| format!("%{byte:02x}")).collect()
    }

    fn keywords_and_values() -> impl Strategy<Value = Pairs> {
        proptest::collection::vec(("[a-z_]{1,12}", "[^\0]{0,12}"), 0..6)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn quoting_then_reading_gives_the_same_pairs(given in keywords_and_values()) {
            let text: Vec<String> = given.iter().map(|(keyword, value)| format!("{keyword}={}", quoted(value))).collect();
            prop_assert_eq!(parse(&text.join(" ")).unwrap(), given);
        }

        #[test]
        fn encoding_then_reading_gives_the_same_pairs(given in keywords_and_values()) {
            let text: Vec<String> = given.iter().map(|(keyword, value)| format!("{keyword}={}", percent_encoded(value))).collect();
            prop_assert_eq!(parse(&format!("postgresql://?{}", text.join("&"))).unwrap(), given);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(postgres://)?[a-z =@:/?&,%'\\\\\\[\\]é]{0,30}") {
            let _ = parse(&text);
        }
    }
}
