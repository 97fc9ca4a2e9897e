//! As much of HTTP as a scrape needs: one request, one answer, and the connection closes.

/// The format's name as Prometheus spells it, in both its second and third major version.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The answer to a request, given as text up to its empty line. `page` gives what stands at `/metrics`, if it can be
/// had now.
pub(super) fn respond<'p>(request: &str, page: impl FnOnce() -> Option<&'p str>) -> Vec<u8> {
    let line = request.lines().next().unwrap_or_default();
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return answer("400 Bad Request", "", "this is not HTTP\n", true);
    };
    if !version.starts_with("HTTP/1.") {
        return answer("400 Bad Request", "", "only HTTP/1.0 and HTTP/1.1 are spoken here\n", true);
    }
    if !["GET", "HEAD"].contains(&method) {
        return answer("405 Method Not Allowed", "Allow: GET, HEAD\r\n", "only GET and HEAD\n", true);
    }
    let with_body = method == "GET";
    if target.split('?').next() != Some("/metrics") {
        return answer("404 Not Found", "", "there is only /metrics\n", with_body);
    }
    match page() {
        Some(page) => answer("200 OK", "", page, with_body),
        None => answer("503 Service Unavailable", "", "the daemon does not answer\n", with_body),
    }
}

fn answer(status: &str, header: &str, body: &str, with_body: bool) -> Vec<u8> {
    let length = body.len();
    let body = if with_body { body } else { "" };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {length}\r\n{header}\
         Connection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ask(request: &str) -> String {
        String::from_utf8(respond(request, || Some("up 1\n"))).unwrap()
    }

    #[test]
    fn the_page_is_at_its_path() {
        for target in ["/metrics", "/metrics?name[]=up"] {
            let answer = ask(&format!("GET {target} HTTP/1.1\r\nHost: x"));
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert!(answer.ends_with("Content-Length: 5\r\nConnection: close\r\n\r\nup 1\n"), "{answer}");
        }
        let head = ask("HEAD /metrics HTTP/1.0");
        assert!(head.contains("Content-Length: 5\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    }

    #[test]
    fn everything_else_says_what_is_wrong() {
        let cases = [
            ("GET / HTTP/1.1", "404"),
            ("GET /metricsx HTTP/1.1", "404"),
            ("POST /metrics HTTP/1.1", "405"),
            ("", "400"),
            ("GET /metrics", "400"),
            ("GET /metrics HTTP/2", "400"),
            ("GET  /metrics HTTP/1.1", "400"),
            ("\u{16}\u{3}\u{1}", "400"),
        ];
        for (request, status) in cases {
            assert!(ask(request).starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}");
        }
        let silent = String::from_utf8(respond("GET /metrics HTTP/1.1", || None)).unwrap();
        assert!(silent.starts_with("HTTP/1.1 503 "), "{silent}");
    }

    proptest! {
        #[test]
        fn requests_never_panic(request in "(GET |HEAD |/metrics|HTTP/1\\.1|[ \r\n]|\\PC){0,8}") {
            prop_assert!(ask(&request).starts_with("HTTP/1.1 "));
        }
    }
}
