package pki

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// maxURL is the maximum length of a URL in a certificate, in bytes.
const maxURL = 512

// CheckWebURL returns an error if a certificate must not contain the URL, which relying parties fetch over plain HTTP.
// Otherwise it returns nil. The URL must be an IA5String as in RFC 3986 (RFC 5280 §4.2.1.6), with a host name or IP
// address, and without user, query and fragment.
func CheckWebURL(text string) error {
	isURL := func(c rune) bool {
		return c > 0x20 && c < 0x7f && !strings.ContainsRune("\"<>\\^`{|}", c)
	}
	if strings.ContainsFunc(text, func(c rune) bool { return !isURL(c) }) {
		return fmt.Errorf("%+q has characters that a URL in a certificate cannot have: write the host as xn--NAME, and other characters as %%XX", text)
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" || u.Hostname() == "" || u.User != nil || strings.ContainsAny(text, "?#") {
		return fmt.Errorf("%q is not an http:// URL with a host, such as http://pki.fleet.example", text)
	}
	if len(text) > maxURL {
		return fmt.Errorf("a URL has %d bytes at most, and this one %d", maxURL, len(text))
	}
	if port := u.Port(); port != "" || strings.HasSuffix(u.Host, ":") {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return fmt.Errorf("%q: the port is 1 to 65535", text)
		}
	}
	if err := checkHost(u.Hostname()); err != nil {
		return fmt.Errorf("%q: %w", text, err)
	}
	return nil
}

// checkHost accepts IP addresses without a zone, and host names (RFC 1123 §2.1).
func checkHost(host string) error {
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip.Zone() != "" {
			return errors.New("an address with a zone has a meaning on one machine alone")
		}
		return nil
	}
	wrong := fmt.Errorf("%q is no host name: use letters, digits and dashes, in labels of 1 to 63", host)
	if len(host) > 253 {
		return wrong
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(host, "."), ".") {
		isLabel := func(c rune) bool {
			return c == '-' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		}
		if label == "" || len(label) > 63 || strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") ||
			strings.ContainsFunc(label, func(c rune) bool { return !isLabel(c) }) {
			return wrong
		}
	}
	return nil
}
