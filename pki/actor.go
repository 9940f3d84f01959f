package pki

import "strings"

// Actor identifies who or what caused a change, as recorded in the log. An Actor is one of:
//
//   - an identity, which a certificate or a request names
//   - evidence of an enrollment, such as an enrollment token
//   - the holder of a private key
//   - a part of Brevet itself
//   - an offline command
//   - unknown, the zero value
//
// Actors can be compared with ==.
//
// The actor of an authenticated request also contains the caller's certificate. In the transaction that writes the
// change, a store authorizes the caller with [Caller.Authorize]. An actor without a certificate has no permissions. If
// the RPC has a request ID, the actor contains the [Request], which the store records in the same transaction.
type Actor struct {
	text    string
	caller  Caller
	request Request
}

// Request identifies an RPC with which an operator changes something. If the operator repeats the RPC, the server
// changes nothing. The zero value means that there is no request ID.
type Request struct {
	ID RequestID
	// Content is the SHA-256 of the operation and its arguments.
	Content [32]byte
}

// IsZero reports whether there is no request ID.
func (r Request) IsZero() bool { return r.ID.IsZero() }

// ActorCaller returns the actor for a caller that has proved possession of the key in one of the identity's
// certificates.
func ActorCaller(id SPIFFEID, certificate CertRef) Actor {
	return Actor{text: id.String(), caller: Caller{id, certificate}}
}

// ActorIdentity returns the actor for an identity. The actor names no certificate.
func ActorIdentity(id SPIFFEID) Actor { return Actor{text: id.String()} }

// ActorEvidence returns the actor for a caller that presented evidence. The name distinguishes pieces of evidence of
// the same kind, and is not secret.
func ActorEvidence(kind EvidenceKind, name string) Actor {
	return Actor{text: kind.String() + ":" + name}
}

// ActorToken returns the actor for a caller that presented an enrollment token.
func ActorToken(id TokenID) Actor { return ActorEvidence(EvidenceToken, id.String()) }

// ActorKey returns the actor for a caller that has only proved possession of a private key.
func ActorKey(key KeyHash) Actor { return Actor{text: "key:" + key.String()[:16]} }

// ActorSystem returns the actor for a part of Brevet that acts on its own, for instance on a schedule.
func ActorSystem(part string) Actor { return Actor{text: "system:" + part} }

// ActorCommand returns the actor for a person who ran an offline command on the CA's machine.
func ActorCommand(command string) Actor { return Actor{text: "command:" + command} }

// unknown is the text of the zero Actor.
const unknown = "unknown"

// ActorFromText returns the Actor whose String is text, for a store that reads it. The result contains no certificate.
func ActorFromText(text string) Actor {
	if text == unknown {
		return Actor{}
	}
	return Actor{text: text}
}

// String formats the actor. The result is a SPIFFE ID, key:…, system:…, command:…, the kind of evidence and its name
// such as token:…, or "unknown".
func (a Actor) String() string {
	if a.text == "" {
		return unknown
	}
	return a.text
}

// WithRequest returns a copy of the actor with a request.
func (a Actor) WithRequest(r Request) Actor {
	a.request = r
	return a
}

// Request returns the actor's request. It is zero if the RPC has no request ID.
func (a Actor) Request() Request { return a.request }

// Caller returns the caller with its certificate. It returns the zero value if the actor contains no certificate.
func (a Actor) Caller() Caller { return a.caller }

// NeedsAuthorization reports whether a store must authorize a change by this actor. Parts of Brevet and offline
// commands need no authorization, because they have access to the CA's keys. Evidence and the signature of a key need
// none, because they are checked before.
func (a Actor) NeedsAuthorization() bool {
	kind, _, ok := strings.Cut(a.text, ":")
	if !ok {
		return true
	}
	_, err := ParseEvidenceKind(kind)
	return err != nil && kind != "system" && kind != "command" && kind != "key"
}

// Named returns the actor without its certificate, like an actor that a store reads from the log.
func (a Actor) Named() Actor { return Actor{text: a.text} }
