package grpcapi

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// Numbers of records on a page of a list.
const (
	maxPage     = 1000
	defaultPage = 100
)

func pageSize(n int32) (int, error) {
	switch {
	case n == 0:
		return defaultPage, nil
	case n < 0 || n > maxPage:
		return 0, pki.Refuse(pki.RuleRequest, "use 1 to 1000, or 0 for 100", "the page size is %d", n)
	}
	return int(n), nil
}

// A page token consists of a hash of the list's filter, and the sort key of the last record before the page. It
// contains no row number, so it is also valid for a restored store with the same records.
const (
	filterSize   = 16   // length of the hash in bytes
	maxPageToken = 4096 // length of the text; the longest sort key is a SPIFFE ID of 2048 bytes
)

// listRequest is a request for one page of a list.
type listRequest interface {
	proto.Message
	GetPageToken() string
}

// errPageToken is the error for a malformed sort key.
var errPageToken = errors.New("malformed page token")

// pageToken returns the token of the page that starts after the record with a sort key.
func pageToken(req listRequest, key []byte) string {
	filter, _ := filterHash(req) // pageAfter has computed the same hash without an error
	return base64.RawURLEncoding.EncodeToString(append(filter, key...))
}

// pageAfter returns the sort key in a request's page token, or the zero value for the first page. It refuses a token
// that was returned for another filter.
func pageAfter[K any](req listRequest, parse func(key []byte) (K, error)) (K, error) {
	var none K
	filter, err := filterHash(req)
	text := req.GetPageToken()
	if text == "" || err != nil {
		return none, err
	}
	malformed := pki.Refuse(pki.RuleRequest, "send the next_page_token of the page before", "the page token is malformed")
	if len(text) > maxPageToken {
		return none, malformed
	}
	token, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(token) < filterSize {
		return none, malformed
	}
	if !bytes.Equal(token[:filterSize], filter) {
		return none, pki.Refuse(pki.RuleRequest, "repeat the filter of the first page, or list from the first page again",
			"the page token is of a list with another filter")
	}
	key, err := parse(token[filterSize:])
	if err != nil {
		return none, malformed
	}
	return key, nil
}

// filterHash returns a hash of the request without page size and page token: of the RPC and its filter.
func filterHash(req listRequest) ([]byte, error) {
	h, err := contentHash(req, "page_size", "page_token")
	return h[:filterSize], err
}

// timeKey encodes a time, in milliseconds, as the beginning of a sort key.
func timeKey(t time.Time) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(t.UnixMilli()))
}

// cutTime decodes the time at the beginning of a sort key, and returns it with the rest of the key.
func cutTime(key []byte) (time.Time, []byte, error) {
	if len(key) < 8 {
		return time.Time{}, nil, errPageToken
	}
	return time.UnixMilli(int64(binary.BigEndian.Uint64(key))).UTC(), key[8:], nil //nolint:gosec // any value is a sort key
}

// labelIn converts a label of a filter. It returns the zero value for nil.
func labelIn(l *brevetv1.Label) pki.Label { return pki.Label{Name: l.GetName(), Value: l.GetValue()} }

// statesIn converts the states or kinds of a filter.
func statesIn[W ~int32, S comparable](table map[W]S, wire []W) ([]S, error) {
	var states []S
	for _, w := range wire {
		s, known := table[w]
		if !known {
			return nil, pki.Refuse(pki.RuleRequest, "leave the filter empty for all, or use values of the enumeration", "%d is not a value of it", w)
		}
		states = append(states, s)
	}
	return states, nil
}
