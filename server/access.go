package server

import (
	"strings"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// who says which callers may call an RPC.
type who uint8

const (
	nobody    who = iota // the zero value: what is not in the table is denied
	anybody              // without a certificate too
	identity             // any caller with a valid certificate
	renewing             // the same, and one whose certificate was superseded: it may not have heard the answer to its renewal
	operators            // callers with a valid operator's certificate
)

// access is the one table of who may call what. A test fails for an RPC that is served and not in it.
var access = map[string]who{
	brevetv1.EnrollmentService_Enroll_FullMethodName:            anybody, // the token is the proof
	brevetv1.EnrollmentService_Renew_FullMethodName:             renewing,
	brevetv1.EnrollmentService_IssueCertificates_FullMethodName: operators,

	brevetv1.IdentityService_CreateIdentity_FullMethodName:  operators,
	brevetv1.IdentityService_GetIdentity_FullMethodName:     operators,
	brevetv1.IdentityService_ListIdentities_FullMethodName:  operators,
	brevetv1.IdentityService_SuspendIdentity_FullMethodName: operators,
	brevetv1.IdentityService_ResumeIdentity_FullMethodName:  operators,
	brevetv1.IdentityService_RetireIdentity_FullMethodName:  operators,
	brevetv1.IdentityService_CreateToken_FullMethodName:     operators,
	brevetv1.IdentityService_ListTokens_FullMethodName:      operators,
	brevetv1.IdentityService_RevokeToken_FullMethodName:     operators,

	brevetv1.CertificateService_GetCertificate_FullMethodName:    operators,
	brevetv1.CertificateService_ListCertificates_FullMethodName:  operators,
	brevetv1.CertificateService_RevokeCertificate_FullMethodName: operators,

	brevetv1.CertificateService_RevokeCertificates_FullMethodName:   operators,
	brevetv1.CertificateService_GetRevocationSet_FullMethodName:     operators,
	brevetv1.CertificateService_RevokeCompromisedKey_FullMethodName: anybody, // the signature is the proof

	brevetv1.CRLService_ListCRLs_FullMethodName:  operators,
	brevetv1.CRLService_ImportCRL_FullMethodName: operators,

	brevetv1.LogService_ListEntries_FullMethodName: operators,
	brevetv1.LogService_GetHead_FullMethodName:     operators,

	brevetv1.StoreService_GetStats_FullMethodName: operators,

	// Its answers are large, and gRPC keeps what a client does not read, so it is for nobody unknown.
	"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      operators,
	"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": operators,

	// Public knowledge: whether the server is up.
	"/grpc.health.v1.Health/Check": anybody,
	"/grpc.health.v1.Health/List":  anybody,
	"/grpc.health.v1.Health/Watch": anybody,
}

// works says what kind of work an RPC is, and so which lane it waits in. What is not in it, calls about health, waits
// nowhere. A test fails for an RPC of our own that is missing.
var works = map[string]work{
	brevetv1.EnrollmentService_Enroll_FullMethodName: enrollments,
	brevetv1.EnrollmentService_Renew_FullMethodName:  renewals,

	brevetv1.EnrollmentService_IssueCertificates_FullMethodName: streams,

	brevetv1.IdentityService_SuspendIdentity_FullMethodName:      revocations,
	brevetv1.IdentityService_ResumeIdentity_FullMethodName:       revocations,
	brevetv1.IdentityService_RetireIdentity_FullMethodName:       revocations,
	brevetv1.IdentityService_RevokeToken_FullMethodName:          revocations,
	brevetv1.CertificateService_RevokeCertificate_FullMethodName: revocations,
	brevetv1.CRLService_ImportCRL_FullMethodName:                 revocations,

	brevetv1.CertificateService_RevokeCertificates_FullMethodName:   revocations,
	brevetv1.CertificateService_RevokeCompromisedKey_FullMethodName: compromises,

	brevetv1.IdentityService_CreateIdentity_FullMethodName: registrations,
	brevetv1.IdentityService_CreateToken_FullMethodName:    registrations,

	brevetv1.IdentityService_GetIdentity_FullMethodName:         readings,
	brevetv1.IdentityService_ListIdentities_FullMethodName:      readings,
	brevetv1.IdentityService_ListTokens_FullMethodName:          readings,
	brevetv1.CertificateService_GetCertificate_FullMethodName:   readings,
	brevetv1.CertificateService_ListCertificates_FullMethodName: readings,
	brevetv1.CertificateService_GetRevocationSet_FullMethodName: readings,
	brevetv1.CRLService_ListCRLs_FullMethodName:                 readings,
	brevetv1.StoreService_GetStats_FullMethodName:               readings,

	brevetv1.LogService_ListEntries_FullMethodName: logs, // and each page is a reading
	brevetv1.LogService_GetHead_FullMethodName:     logs,

	"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      logs,
	"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": logs,

	"/grpc.health.v1.Health/Watch": watches,
}

// OperatorPath opens the reserved paths of operators. Nobody but an operator is ever issued a certificate under it.
const OperatorPath = "brevet/operator/"

func (c caller) isOperator() bool { return strings.HasPrefix(c.id.Path(), OperatorPath) }
