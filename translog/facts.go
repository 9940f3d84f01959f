package translog

import (
	"encoding/hex"
	"fmt"
	"maps"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// The facts that most entries have. A text that its field can represent exactly is encoded in a field; any other text
// is encoded as a generic fact. So every text is decoded as it was.
const (
	factPredecessor = "predecessor"
	factProfile     = "profile"
	factRequest     = "request"
)

// setFacts encodes facts.
func setFacts(m *brevetv1.LogEntry, facts map[string]string) {
	rest := maps.Clone(facts)
	if s, err := pki.ParseSerial(facts[factPredecessor]); err == nil && s.String() == facts[factPredecessor] {
		m.PredecessorSerial = s.Bytes()
		delete(rest, factPredecessor)
	}
	if p := facts[factProfile]; p != "" {
		m.Profile = p
		delete(rest, factProfile)
	}
	if id, err := parseRequest(facts[factRequest]); err == nil && id.String() == facts[factRequest] {
		m.RequestId = id.Bytes()
		delete(rest, factRequest)
	}
	m.Facts = rest
}

func parseRequest(text string) (pki.RequestID, error) {
	b, err := hex.DecodeString(text)
	if err != nil {
		return pki.RequestID{}, err
	}
	return pki.RequestIDFromBytes(b)
}

// factsOf decodes the facts that setFacts encoded.
func factsOf(m *brevetv1.LogEntry) (map[string]string, error) {
	typed := map[string]string{}
	if b := m.GetPredecessorSerial(); len(b) > 0 {
		s, err := pki.SerialFromBytes(b)
		if err != nil {
			return nil, err
		}
		typed[factPredecessor] = s.String()
	}
	if p := m.GetProfile(); p != "" {
		typed[factProfile] = p
	}
	if b := m.GetRequestId(); len(b) > 0 {
		id, err := pki.RequestIDFromBytes(b)
		if err != nil {
			return nil, err
		}
		typed[factRequest] = id.String()
	}
	if len(typed) == 0 {
		return m.GetFacts(), nil
	}
	for k, v := range m.GetFacts() {
		if _, twice := typed[k]; twice {
			return nil, fmt.Errorf("fact %q occurs twice", k)
		}
		typed[k] = v
	}
	return typed, nil
}
