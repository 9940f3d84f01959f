package authz

import (
	"maps"
	"slices"

	"github.com/brevet-pki/brevet/pki"
)

// Callers is a set of callers.
type Callers uint8

// The sets of callers.
const (
	Nobody   Callers = iota // the zero value: denies an operation that is not in the table
	Anybody                 // any caller, even without a certificate
	Identity                // any caller with a valid certificate
	// Renewing is any caller with a valid certificate, or with a certificate that is revoked as superseded. The holder of
	// a superseded certificate may have lost the response to its renewal, and repeats the request.
	Renewing
	Operators // callers with a valid operator's certificate, who need a permission
)

// Access is the set of callers that may call an operation. The zero value is the empty set.
type Access struct {
	Callers Callers
	// Permission is what Operators need. For other callers it is zero. The roles of an operator grant it
	// ([pki.Role.Permits]).
	Permission pki.Permission
}

// access maps each operation to the callers that may call it, whichever protocol they use. A test fails if the server
// serves an operation that is not in this table.
//
// CreateIdentity, UpdateIdentity, SuspendIdentity, ResumeIdentity, RetireIdentity and CreateToken need another
// permission for an operator's identity. The store checks it with the change (package store/rules).
var access = map[Operation]Access{
	Enroll:            {Callers: Anybody}, // evidence in the request authenticates the caller
	CreateChallenge:   {Callers: Anybody}, // clients call it before Enroll, without a certificate
	Renew:             {Callers: Renewing},
	GetTrustBundle:    {Callers: Identity},
	GetRenewalInfo:    {Callers: Identity},
	IssueCertificates: {Operators, pki.MayIssue},

	GetESTCACertificates: {Callers: Anybody}, // clients trust the response only as they trust the connection
	GetESTAttributes:     {Callers: Anybody}, // clients call it before simpleenroll
	RefuseESTOperation:   {Callers: Anybody}, // so that every client gets the hint

	CreateIdentity:  {Operators, pki.MayRegister},
	GetIdentity:     {Operators, pki.MayRead},
	ListIdentities:  {Operators, pki.MayRead},
	UpdateIdentity:  {Operators, pki.MayRegister},
	SuspendIdentity: {Operators, pki.MayRevoke},
	ResumeIdentity:  {Operators, pki.MayRevoke},
	RetireIdentity:  {Operators, pki.MayRevoke},
	CreateToken:     {Operators, pki.MayRegister},
	ListTokens:      {Operators, pki.MayRead},
	RevokeToken:     {Operators, pki.MayRevoke},

	GetCertificate:      {Operators, pki.MayRead},
	ListCertificates:    {Operators, pki.MayRead},
	GetCertificateChain: {Callers: Identity},
	RevokeCertificate:   {Operators, pki.MayRevoke},
	HoldCertificate:     {Operators, pki.MayRevoke},
	UnholdCertificate:   {Operators, pki.MayRevoke},

	CreateBulkRevocation: {Operators, pki.MayRevoke},
	GetBulkRevocation:    {Operators, pki.MayRead},
	ListBulkRevocations:  {Operators, pki.MayRead},
	RevokeCompromisedKey: {Callers: Anybody}, // a signature in the request proves possession of the key

	// Who may revoke certificates in bulk may also have them renewed, which harms less.
	StartRotation: {Operators, pki.MayRevoke},
	GetRotation:   {Operators, pki.MayRead},
	ListRotations: {Operators, pki.MayRead},
	StopRotation:  {Operators, pki.MayRevoke},

	ListCRLs:  {Operators, pki.MayRead},
	ImportCRL: {Operators, pki.MayAdminister},

	ApplyPolicy:   {Operators, pki.MayAdminister},
	GetPolicy:     {Operators, pki.MayAudit},
	ListPolicies:  {Operators, pki.MayAudit},
	ExplainPolicy: {Operators, pki.MayAudit},

	CreateExternalKey: {Operators, pki.MayRegister},
	ListExternalKeys:  {Operators, pki.MayRead},
	RevokeExternalKey: {Operators, pki.MayRevoke},

	ListEntries: {Operators, pki.MayAudit},
	GetHead:     {Operators, pki.MayAudit},

	GetStats: {Operators, pki.MayAudit},

	// The signature of the request authenticates the client, except for the directory and renewalInfo, which are public.
	ACMEDirectory:   {Callers: Anybody},
	ACMEAccount:     {Callers: Anybody},
	ACMEOrder:       {Callers: Anybody},
	ACMEFinalize:    {Callers: Anybody},
	ACMECertificate: {Callers: Anybody},
	ACMERevoke:      {Callers: Anybody},
	ACMERenewalInfo: {Callers: Anybody},

	// Unknown callers may not use reflection: its responses are large, and gRPC buffers what a client does not read.
	ReflectServices: {Operators, pki.MayRead},

	CheckHealth: {Callers: Anybody},
	ListHealth:  {Callers: Anybody},
	WatchHealth: {Callers: Anybody},
}

// AccessOf returns who may call an operation. For an operation that is not in the table it returns the zero Access.
func AccessOf(op Operation) Access { return access[op] }

// Operations returns every operation in the table, sorted by name.
func Operations() []Operation { return slices.Sorted(maps.Keys(access)) }

// ErrNoOperation is the refusal of an operation that is not in the table.
var ErrNoOperation error = pki.Refuse(pki.RuleMethod,
	"call an RPC in proto/brevet/v1, or a server of a version that has it", "this server has no such RPC")
