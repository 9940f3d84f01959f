package pki

import (
	"slices"
	"strings"
)

// Actor identifies the cause of a change, as the log records it. An Actor is one of:
//
//   - an identity, which a certificate or a request names
//   - evidence of an enrollment, such as an enrollment token
//   - the holder of a private key
//   - a part of Brevet itself
//   - an offline command
//   - unknown, the zero value
//
// Actors compare with ==.
//
// The actor of an authenticated request also carries the caller's certificate. In the transaction that writes the
// change, a store authorizes the caller with [Caller.Authorize]. An actor without a certificate authorizes nothing. The
// actor of a call with a request ID carries the [Request]. A store records it in the same transaction.
type Actor struct {
	text    string
	caller  Caller
	request Request
}

// Request identifies a changing call of an operator, so that a repeat of it changes nothing. The zero value is none.
type Request struct {
	ID RequestID
	// Content is the SHA-256 of the operation and its arguments.
	Content [32]byte
}

// IsZero reports whether r is none.
func (r Request) IsZero() bool { return r.ID.IsZero() }

// ActorCaller returns the actor for a caller that proved possession of the key of a certificate of the identity.
func ActorCaller(id SPIFFEID, certificate CertRef) Actor {
	return Actor{text: id.String(), caller: Caller{id, certificate}}
}

// ActorIdentity returns the actor for an identity, without a certificate.
func ActorIdentity(id SPIFFEID) Actor { return Actor{text: id.String()} }

// ActorEvidence returns the actor for a caller that presented evidence. The name identifies the evidence among those of
// its kind; it is not a secret.
func ActorEvidence(kind EvidenceKind, name string) Actor {
	return Actor{text: kind.String() + ":" + name}
}

// ActorToken returns the actor for a caller that presented an enrollment token.
func ActorToken(id TokenID) Actor { return ActorEvidence(EvidenceToken, id.String()) }

// ActorKey returns the actor for a caller that proved possession of a private key, and nothing else.
func ActorKey(key KeyHash) Actor { return Actor{text: "key:" + key.String()[:16]} }

// ActorSystem returns the actor for a part of Brevet that acts on its own schedule.
func ActorSystem(part string) Actor { return Actor{text: "system:" + part} }

// ActorCommand returns the actor for a person who ran an offline command on the CA's machine.
func ActorCommand(command string) Actor { return Actor{text: "command:" + command} }

// unknown is the text of the zero Actor.
const unknown = "unknown"

// ActorFromText restores an Actor from its String, when a store reads it back. The result carries no certificate.
func ActorFromText(text string) Actor {
	if text == unknown {
		return Actor{}
	}
	return Actor{text: text}
}

// String formats the actor: a SPIFFE ID, or one of key:…, system:…, command:…, the kind of evidence and its name such as
// token:…, or "unknown".
func (a Actor) String() string {
	if a.text == "" {
		return unknown
	}
	return a.text
}

// WithRequest returns the actor with the request that it makes.
func (a Actor) WithRequest(r Request) Actor {
	a.request = r
	return a
}

// Request returns the request that the actor makes; zero if it has no request ID.
func (a Actor) Request() Request { return a.request }

// Caller returns the caller with its certificate. If the actor carries no certificate, Caller returns the zero value.
func (a Actor) Caller() Caller { return a.caller }

// NeedsAuthorization reports whether a store must authorize the change that the actor causes. System parts and offline
// commands need none, since they have access to the CA's keys. Evidence of an enrollment and the signature of a key are
// checked by themselves.
func (a Actor) NeedsAuthorization() bool {
	kind, _, ok := strings.Cut(a.text, ":")
	return !ok || kind != "system" && kind != "command" && kind != "key" && !slices.Contains(evidenceNames, kind)
}

// Named returns the actor without its certificate: the value that a store reads back from the log.
func (a Actor) Named() Actor { return Actor{text: a.text} }
