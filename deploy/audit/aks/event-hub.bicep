// An event hub for the audit logs of AKS clusters, and what reads it.
//   az deployment group create -g GROUP -f event-hub.bicep -p namespaceName=NAME principalId=OBJECT_ID

@description('Name of the new namespace; the host name is <name>.servicebus.windows.net.')
param namespaceName string

@description('Object id of the identity that the ingester runs as.')
param principalId string

@description('Region: that of the clusters. Diagnostic settings write to event hubs of their own region only.')
param location string = resourceGroup().location

@description('Partitions: as many ingesters can share the event hub.')
@minValue(1)
@maxValue(32)
param partitions int = 4

@description('Days that messages are kept: what an ingester that is down can catch up with. The Standard tier keeps 7 at most.')
@minValue(1)
@maxValue(7)
param retentionDays int = 7

resource namespace 'Microsoft.EventHub/namespaces@2024-01-01' = {
  name: namespaceName
  location: location
  sku: {
    name: 'Standard' // Basic has no consumer groups of one's own
    tier: 'Standard'
    capacity: 1
  }
  properties: {
    isAutoInflateEnabled: true
    maximumThroughputUnits: 4
    minimumTlsVersion: '1.2'
  }

  // Diagnostic settings want a rule of the namespace with all three rights.
  // The ingester does not use it.
  resource writer 'authorizationRules' = {
    name: 'diagnostic-settings'
    properties: {
      rights: ['Listen', 'Send', 'Manage']
    }
  }

  resource hub 'eventhubs' = {
    name: 'kube-audit'
    properties: {
      partitionCount: partitions
      retentionDescription: {
        cleanupPolicy: 'Delete'
        retentionTimeInHours: 24 * retentionDays
      }
    }

    resource group 'consumergroups' = {
      name: 'picket'
    }
  }
}

// Azure Event Hubs Data Receiver.
var receiver = subscriptionResourceId('Microsoft.Authorization/roleDefinitions', 'a638d3c7-ab3a-418d-83e6-5f17a39d4fde')

resource reads 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(namespace::hub.id, principalId, receiver)
  scope: namespace::hub
  properties: {
    roleDefinitionId: receiver
    principalId: principalId
    principalType: 'ServicePrincipal'
  }
}

output namespaceHost string = '${namespaceName}.servicebus.windows.net'
output writerRule string = namespace::writer.id
