package authz

import (
	"maps"
	"slices"

	"github.com/brevet-pki/brevet/pki"
)

// Access says which callers may call an operation.
type Access uint8

// The kinds of access.
const (
	Nobody   Access = iota // the zero value: an operation that is not in the table is denied
	Anybody                // without a certificate too
	Identity               // any caller with a valid certificate
	// Renewing is Identity, and callers whose certificate was superseded: the response to their renewal may have been lost.
	Renewing
	Operators // callers with a valid operator's certificate
)

// access is the one table of who may call what, on every front door. A test fails for an operation that is served and not
// in it.
var access = map[Operation]Access{
	Enroll:            Anybody, // the evidence is the proof
	CreateChallenge:   Anybody, // it comes before Enroll
	Renew:             Renewing,
	GetTrustBundle:    Identity,
	IssueCertificates: Operators,

	CreateIdentity:  Operators,
	GetIdentity:     Operators,
	ListIdentities:  Operators,
	UpdateIdentity:  Operators,
	SuspendIdentity: Operators,
	ResumeIdentity:  Operators,
	RetireIdentity:  Operators,
	CreateToken:     Operators,
	ListTokens:      Operators,
	RevokeToken:     Operators,

	GetCertificate:      Operators,
	ListCertificates:    Operators,
	GetCertificateChain: Identity,
	RevokeCertificate:   Operators,
	HoldCertificate:     Operators,
	UnholdCertificate:   Operators,

	CreateBulkRevocation: Operators,
	GetBulkRevocation:    Operators,
	ListBulkRevocations:  Operators,
	RevokeCompromisedKey: Anybody, // the signature is the proof

	ListCRLs:  Operators,
	ImportCRL: Operators,

	ListEntries: Operators,
	GetHead:     Operators,

	GetStats: Operators,

	// Its responses are large, and gRPC keeps what a client does not read, so it is not open to unknown callers.
	ReflectServices: Operators,

	// Public knowledge: whether the server is up.
	CheckHealth: Anybody,
	ListHealth:  Anybody,
	WatchHealth: Anybody,
}

// AccessOf returns who may call an operation: Nobody if it is not in the table.
func AccessOf(op Operation) Access { return access[op] }

// Operations returns every operation of the table, in the order of their names.
func Operations() []Operation { return slices.Sorted(maps.Keys(access)) }

// ErrUnserved refuses operations that are not in the table.
var ErrUnserved error = pki.Refuse(pki.RuleMethod,
	"call what proto/brevet/v1 has, or a server of the version that has it", "this server has no such call")

// OperatorPath begins the reserved paths of operators. Only operators are issued a certificate under it.
const OperatorPath = "brevet/operator/"
